"""JSON values that requests carry: arguments of calls and schemas of tools.

Every text in them was written by somebody else, names of fields among them. Whoever has read them
bounds their depth: bodies and `read_object` take up to 200 levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_INTEGER_BITS = 1024  # as far as floating-point numbers reach
# Of all texts of one dialogue that are read. From as many lists to a prompt took 0.4 s, 1.6 s where
# they lay in each other (a busy machine, 2026-11); of 14 times as many, 1 s held the interpreter.
MAX_MARKS = 2**18
_MARKS = '[{,:"'
# Quotes, a comma, a line break.
_CHARS_PER_VALUE = 8


def read_object(text: str) -> dict[str, Any]:
    """Read the text of an object; raises ValueError, whose words say what was found.

    How much the text may hold, `num_marks` says.
    """
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"is no JSON: {str(error)[:160]}") from None
    if not isinstance(value, dict):
        raise ValueError(f"is JSON of type {_kind_of(value)}, not an object")
    if fault := fault_of(value):
        raise ValueError(fault)
    return value


def num_marks(text: str) -> int:
    """Count the characters of a text of JSON that begin values, or may do so."""
    return sum(map(text.count, _MARKS))


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with each of these texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): with_texts(inner, change) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(inner, change) for inner in value]
    return value


def marks_size(value: object, depth: int = 1) -> int:
    """Say how many characters a value takes beyond its texts.

    Four times as many are allowed (`sandbox.CHARS_PER_CHAR`), which is enough with an indentation
    of four for each level.
    """
    own = _CHARS_PER_VALUE + depth
    if isinstance(value, int | float):
        return own + len(str(value))
    if not isinstance(value, Mapping | list | tuple):
        return own
    inner = value.values() if isinstance(value, Mapping) else value
    return 2 * own + sum(marks_size(one, depth + 1) for one in inner)  # its end is a line, too


def fault_of(value: object) -> str | None:
    """Say what in a value no template can be given: numbers out of range, lone surrogates."""
    if isinstance(value, Mapping):
        return next(filter(None, map(fault_of, (*value, *value.values()))), None)
    if isinstance(value, list | tuple):
        return next(filter(None, map(fault_of, value)), None)
    if isinstance(value, str):
        return None if _is_unicode(value) else "holds a lone surrogate; send well-formed Unicode"
    if isinstance(value, float) and not math.isfinite(value):
        return "holds a number out of range"
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        return "holds a number out of range"
    if value is None or isinstance(value, int | float):
        return None
    return f"holds a {type(value).__name__}, which is no JSON"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind_of(value: object) -> str:
    kinds = {bool: "boolean", str: "string", list: "list", type(None): "null"}
    return kinds.get(type(value), "number")
