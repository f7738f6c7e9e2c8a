"""What the library says of a grammar it cannot follow, in words for whoever wrote it."""

from __future__ import annotations

import json
import re

MAX_SHOWN = 200  # characters of what the library says
_HEAD = 400  # characters in which it says which bound it met
PAGE = "docs/structured_output.md lists what can be followed"

_KEYWORDS = re.compile(r"Unimplemented keys: (\[.*\])")
_FORMAT = re.compile(r"Unknown format: (.*)")
_RESOURCE = re.compile(r"Resource '(.*?)' is not present in a registry")
_PIECE = re.compile(r'unknown special token: "(.*?)"')
_PATTERN = re.compile(r"regex parse error:.*?\nerror: ([^\n]*)", re.DOTALL)
_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): (.*)", re.DOTALL)
_ROW = re.compile(r"Current row has (\d+) items; max is (\d+)")
_TOO_MUCH = "needs too much work to follow"
_TOO_MANY_WAYS = "has too many ways to go on in one place"
# What the library says of its bounds, in small letters: what that means, and what to do.
_BOUNDS = {
    "noextension": "allows no text at all; look for parts that contradict each other, and for rules"
    " or references that lead to nothing but themselves",
    "unable to determine if regex": f"{_TOO_MUCH}; join fewer patterns, or simpler ones",
    "fuel exhausted": f"{_TOO_MUCH}; bound its repetitions to fewer, and do not nest them",
    "configuration (grammar) too big": f"{_TOO_MUCH}; send fewer properties, patterns or terminals",
    "too many states": f"{_TOO_MUCH}; bound its repetitions to fewer, and do not nest them",
    "too many expressions": f"{_TOO_MUCH}; send a smaller one",
    "too many items": f"{_TOO_MANY_WAYS}; write repetitions and choices of short texts as one"
    " pattern or terminal",
    "number of symbols) too big": "has too many rules once it is read; send a smaller one, with"
    " fewer or smaller bounds of repetitions",
    "schema too large": "is too large once its references are followed; send a smaller one",
}
_STATE = re.compile(r"\n|<state>")


def in_words(told: str) -> str:
    """Return it in one line: what was found, and what to do where that is known."""
    told = told.strip()
    if found := _KEYWORDS.search(told):
        return f"the JSON schema uses {_listed(found[1])}, which cannot be followed; {PAGE}"
    if found := _FORMAT.match(told):
        return f"the JSON schema asks for a format {_shown(found[1])!r} that is not known; {PAGE}"
    if found := _RESOURCE.match(told):
        return (
            f"the JSON schema refers to {_shown(found[1])!r}, outside of itself; put it into $defs,"
            " and refer to it by #/$defs/…"
        )
    if found := _PATTERN.search(told):
        return f"a pattern cannot be read: {_shown(found[1])}"
    if found := _PIECE.search(told):  # what follows lists all that the library knows
        return f"the grammar names a piece {_shown(found[1])!r} that the vocabulary does not have"
    if told.startswith("oneOf constraints"):
        return "the JSON schema has a oneOf whose kinds overlap; use anyOf"
    if found := _PLACE.match(told):
        return f"line {found[1]}, column {found[2]}: {_shown(found[3])}"
    if found := _ROW.search(told):
        return (
            f"{_TOO_MANY_WAYS} ({found[1]}; at most {found[2]}); list fewer alternatives or"
            " properties that may be left out, or make of choices of texts one pattern or terminal"
        )
    small = told[:_HEAD].lower()
    for sign, words in _BOUNDS.items():
        if sign in small:
            return words
    return _shown(told)


def _listed(names: str) -> str:
    """Return the names of a list in JSON, as a sentence has them."""
    try:
        *others, last = json.loads(names)
    except ValueError:
        return _shown(names)
    return _shown(f"{', '.join(others)} and {last}" if others else last)


def _shown(words: str) -> str:
    """Return the first line of it, without the library's inner state, and not too much."""
    first = _STATE.split(words.strip(), maxsplit=1)[0]
    return first if len(first) <= MAX_SHOWN else first[: MAX_SHOWN - 1] + "…"
