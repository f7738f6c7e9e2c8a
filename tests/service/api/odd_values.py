"""Bodies in which one value after the other is something else than it should be."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of each type, also such as cannot be looked up in a set, and a type in the place of a type's.
ODD = (None, "", [], {}, 5, -1, 1.5, True, "x", ["x"], [[]], {"x": 1}, {"type": []}, [{"type": {}}])


def with_odd_values(body: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Yield the body with each of `ODD` at each place; also where that is."""
    for place in _places(body, ()):
        for odd in ODD:
            changed = copy.deepcopy(body)
            parent: Any = changed
            for step in place[:-1]:
                parent = parent[step]
            parent[place[-1]] = odd
            yield place, changed


def _places(value: object, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for step, one in inner:
        yield (*place, step)
        yield from _places(one, (*place, step))
