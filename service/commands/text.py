"""Text from a hub, a file or a model, made fit for a terminal."""

from __future__ import annotations

import unicodedata

# Control, format (which includes those that reverse a line), surrogate, private, unassigned.
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")

# What could steer a terminal, or make it show a text in another order than it has, each as one
# visible character: ESC as ␛. Joiners, which emoji and many scripts need, stay.
_SHOWN = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    ord("\r"): None,
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys([0x061C, 0x200E, 0x200F], 0xFFFD),
    **dict.fromkeys(range(0x202A, 0x202F), 0xFFFD),
    **dict.fromkeys(range(0x2066, 0x206A), 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}


def printable(text: str) -> str:
    """Return the text on one line, each character that could steer a terminal as `?`."""
    flat = " ".join(text.split())
    return "".join("?" if unicodedata.category(c) in _INVISIBLE else c for c in flat)


def harmless(text: str) -> str:
    """Return the text with its lines and tabs, each character that could steer a terminal shown."""
    return text.translate(_SHOWN)
