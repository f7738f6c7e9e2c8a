r"""What `\d`, `\w` and `\s` stand for in a pattern: ASCII's digits, letters and blanks.

JavaScript takes ASCII's digits and letters and any script's blanks, Python and the library any
script's of all. ASCII's are in every reading, and so is what `\D`, `\W`, `\S` and `[^\d]` hold in
the widest, which stay as they are: whoever checks an answer with the pattern they sent finds it
right.
"""

from __future__ import annotations

import re

_ASCII = {r"\d": "[:digit:]", r"\w": "[:word:]", r"\s": "[:space:]"}
# A class without another in it, an escape, or another character.
_PARTS = re.compile(
    r"(?P<opening>\[(?P<without>\^?)\]?)(?P<inner>(?:\\.|\[:\^?[a-z]+:\]|[^\]\\\[])*+)\]|\\.|[^\\\[]",
    re.DOTALL,
)
_INNER = re.compile(r"\\.|.", re.DOTALL)
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")  # blanks and comments mean nothing there
_OPERATORS = ("&&", "--", "~~")  # between classes


def with_ascii_classes(pattern: str) -> str:
    """Return a pattern whose classes of digits, letters and blanks are ASCII's.

    One that holds classes within classes, or comments, is left as it is.
    """
    if _VERBOSE.search(pattern):
        return pattern
    changed: list[str] = []
    at = 0
    while at < len(pattern):
        part = _PARTS.match(pattern, at)
        if part is None:
            return pattern
        changed.append(_changed(part))
        at = part.end()
    return "".join(changed)


def _changed(part: re.Match[str]) -> str:
    inner: str | None = part["inner"]
    if inner is None:
        return f"[{_ASCII[part[0]]}]" if part[0] in _ASCII else part[0]
    if part["without"] or any(operator in inner for operator in _OPERATORS):
        return part[0]
    pieces = _INNER.findall(inner)
    # Behind a dash that may be a range's, a class would be read as a character.
    follows_range = [number > 1 and pieces[number - 1] == "-" for number in range(len(pieces))]
    pieces = [
        piece if is_behind else _ASCII.get(piece, piece)
        for piece, is_behind in zip(pieces, follows_range, strict=True)
    ]
    return f"{part['opening']}{''.join(pieces)}]"
