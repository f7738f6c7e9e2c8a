"""Attention over the paged KV cache, and how layers ask for it."""
