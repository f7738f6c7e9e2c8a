"""Whole numbers that end: a weak model writes digits as long as it may.

What no schema bounds is bounded to 18 digits, which every reader of JSON can hold in 64 bits. Texts
that follow such a schema follow the one that was sent, too. Left as they are:

- numbers that may have fractions, also where nothing says what a value is: 6.02e23 is one, and the
  library writes no exponent of a number between two bounds;
- multiples of more than `MAX_STEP`: together with bounds they take more work than masks may;
- schemas that join parts, one of which is about numbers as large, or such multiples: both together
  could not hold, or take as much work.
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# The last of 18 digits that is the same as a double, in which the library counts: it would take
# 10**18 - 1 for 10**18, and write 19 digits.
MOST = 10**18 - 128
MAX_STEP = 1000  # of `multipleOf`; at 100 000 a mask fails for the work that it takes
_FAR = MOST // 2  # from here on what is told of a number leaves little room below MOST
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_LISTED = ("enum", "const")
_VALUES = {*_LISTED, "default", "examples"}  # no schemas
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
# What speaks of the same value as the words beside it, from another place.
_PARTS = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"}
_SAYING = {
    *_PARTS, *_LISTED, *_LOWER, *_UPPER, "multipleOf", "type", "properties", "additionalProperties",
    "items", "prefixItems",
}  # fmt: skip


def with_bounded_integers(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose whole numbers have bounds."""
    changed = copy.deepcopy(schema)
    nodes = list(_nodes(changed))
    if any(map(_joins, nodes)) and not _is_near(nodes):
        return schema
    for node in nodes:
        node |= _missing_bounds(node)
    return changed


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Find the schema and all those in it."""
    if isinstance(schema, list):
        for one in schema:
            yield from _nodes(one)
    elif isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword in _NAMED and isinstance(value, dict):
                yield from _nodes(list(value.values()))
            elif keyword not in _VALUES:
                yield from _nodes(value)


def _missing_bounds(node: dict[str, Any]) -> dict[str, int]:
    if not _is_whole(node) or node.keys() & set(_LISTED) or _steps([node]) > MAX_STEP:
        return {}
    bounds = {}
    if not node.keys() & set(_LOWER):
        far = [int(bound) - MOST for bound in _numbers(node, _UPPER) if bound < -_FAR]
        bounds["minimum"] = min([-MOST, *far])
    if not node.keys() & set(_UPPER):
        far = [int(bound) + MOST for bound in _numbers(node, _LOWER) if bound > _FAR]
        bounds["maximum"] = max([MOST, *far])
    return bounds


def _is_whole(node: dict[str, Any]) -> bool:
    """Whether the numbers that a node allows, among other values, are whole ones."""
    kinds = node.get("type", "number")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "number" not in kinds:
        return "integer" in kinds
    return any(_fraction(step).denominator == 1 for step in _numbers(node, ("multipleOf",)))


def _joins(node: dict[str, Any]) -> bool:
    """Whether several schemas speak of the same value, or of one within it."""
    said = node.keys() & _SAYING
    parts = node.get("allOf")
    if "oneOf" in said or (isinstance(parts, list) and len(parts) > 1):
        return True
    if said & set(_LISTED):
        return len(said) > 1 + ("type" in said)
    return bool(said & _PARTS) and len(said) > 1


def _is_near(nodes: Sequence[dict[str, Any]]) -> bool:
    """Whether whatever follows all of the nodes together leaves room within the bounds."""
    return (
        all(bound <= _FAR for node in nodes for bound in _numbers(node, _LOWER))
        and all(bound >= -_FAR for node in nodes for bound in _numbers(node, _UPPER))
        and all(
            abs(value) <= _FAR
            for node in nodes
            for keyword in _LISTED
            for value in _numbers_in(node.get(keyword))
        )
        and _steps(nodes) <= MAX_STEP
    )


def _steps(nodes: Iterable[dict[str, Any]]) -> int:
    """Return how far apart whole numbers are that follow all nodes; if too far, about."""
    least = 1
    for node in nodes:
        for step in _numbers(node, ("multipleOf",)):
            least = math.lcm(least, _fraction(step).numerator)
            if least > MAX_STEP:
                return least
    return least


def _fraction(number: float) -> Fraction:
    # As it was written: 0.1 is a tenth.
    return Fraction(number if isinstance(number, int) else str(number))


def _numbers(node: dict[str, Any], keywords: Iterable[str]) -> list[int | float]:
    return [node[name] for name in keywords if _is_number(node.get(name))]


def _numbers_in(value: Any) -> Iterator[int | float]:
    """Find the numbers in a value of JSON, at any depth."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers_in(one)
    elif _is_number(value):
        yield value


def _is_number(value: Any) -> bool:
    # Python takes true for a number, and reads 1e999 as infinity.
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))
