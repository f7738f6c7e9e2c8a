"""Text from a hub or a file, made fit for a terminal."""

from __future__ import annotations

import unicodedata

# Control, format (which includes those that reverse a line), surrogate, private, unassigned.
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")


def printable(text: str) -> str:
    """Return the text on one line, each character that could steer a terminal as `?`."""
    flat = " ".join(text.split())
    return "".join("?" if unicodedata.category(c) in _INVISIBLE else c for c in flat)
