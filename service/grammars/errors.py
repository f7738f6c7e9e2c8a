"""What cannot be followed, in words for whoever wrote it."""

from __future__ import annotations


class InvalidGrammarError(Exception):
    """A schema, pattern or grammar cannot be read, or is larger than may be."""
