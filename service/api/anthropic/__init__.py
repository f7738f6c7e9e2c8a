"""Anthropic's Messages API, as its official clients and agents use it."""
