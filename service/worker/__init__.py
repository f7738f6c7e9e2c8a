"""Builds the engine of one variant, in a process of its own."""
