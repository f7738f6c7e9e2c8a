"""Reads JSON of which nothing is known: no more parts than allowed, and no name twice in an object.

The parser (pydantic-core's) makes all of a body in one call, in which nothing else of Python runs:
4 MB of "[[]]," took 0.43 s (2026-11). So parts are counted first, by operations on pieces of the
bytes between which others have their turn. The parser keeps the last of several equal names and
says nothing; the count tells that one is missing, at 1 to 2 ns a byte. What the fields mean is
`service.api.request_bodies`' business.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from service.api.field_names import safe_name
from service.errors import InvalidJsonError

if TYPE_CHECKING:
    from collections.abc import Iterator

# So many plain values cost as much as one object, list or string. Processor time (2026-11): numbers
# 40 ns, whole or not; different strings 110 to 170, objects and lists 50 to 230, names up to 440.
VALUES_PER_PART = 3
_PIECE = 64 * 1024
_CONTAINERS = (dict, list)
_MAX_REASON = 160


@dataclass(slots=True)
class JsonParts:
    """How much there is in a text of JSON; right where the text is JSON."""

    num_containers: int = 0  # objects and lists
    num_names: int = 0
    num_commas: int = 0
    num_quotes: int = 0  # around strings, names among them

    @property
    def total(self) -> int:
        """Count them by what they cost."""
        return self.num_containers + self.num_quotes // 2 + self.num_commas // VALUES_PER_PART


def read_json(body: bytes, max_parts: int, what: str = "the body") -> Any:
    """Return what a body says, which errors call `what`. Raises InvalidJsonError."""
    parts = count_parts(body, max_parts)
    if parts.total > max_parts:
        raise InvalidJsonError(
            f"{what} has more than {max_parts} parts (objects, lists and strings;"
            f" {VALUES_PER_PART} other values count as one); send less at once, or have the"
            " setting max_body_parts raised"
        )
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJsonError(f"{what} is not JSON: {str(error)[:_MAX_REASON]}") from None
    if parts.num_names and _num_names(value, parts.num_containers) != parts.num_names:
        name = safe_name(_twice_named(body))
        raise InvalidJsonError(
            f"{what} names {name} twice in the same object; give it once", param=name
        )
    return value


def count_parts(body: bytes, max_parts: int) -> JsonParts:
    """Count a body's parts; stop soon behind the first too many."""
    parts = JsonParts()
    for text, num_quotes in _outside_of_strings(body):
        parts.num_quotes += num_quotes
        parts.num_containers += text.count(b"[") + text.count(b"{")
        parts.num_names += text.count(b":")
        parts.num_commas += text.count(b",")
        if parts.total > max_parts:
            break
    return parts


def _outside_of_strings(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Give a body piece by piece without its strings, and how many quotes stand around those."""
    is_inside = False
    start = 0
    while start < len(body):
        end = start + _PIECE
        piece = body[start:end]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape is not cut
            end += 1
            piece = body[start:end]
        if b"\\" in piece:  # pairs first, as a run of backslashes is read from its beginning
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        texts = piece.split(b'"')
        yield b" ".join(texts[is_inside::2]), len(texts) - 1
        is_inside ^= len(texts) % 2 == 0
        start = end


def _num_names(value: object, num_containers: int) -> int:
    """Count the names in a value; what holds no containers any more is not looked through."""
    num_names = 0
    num_found = 1
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        is_object = isinstance(one, dict)
        num_names += len(one) if is_object else 0
        inner = one.values() if is_object else one
        if num_found < num_containers:
            found = [item for item in inner if type(item) in _CONTAINERS]
            num_found += len(found)
            waiting += found
    return num_names


def _twice_named(body: bytes) -> str:
    """Return the first name that an object of a body has twice."""
    twice: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(name for name, _ in pairs)
        if len(counts) < len(pairs):
            twice.append(next(name for name, count in counts.items() if count > 1))

    json.loads(body, object_pairs_hook=look, parse_int=_nothing, parse_float=_nothing)
    return twice[0]


def _nothing(_number: str) -> None:
    """Take a number for nothing; written in Python, where others get their turn at each call."""
