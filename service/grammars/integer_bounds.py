"""Whole numbers that end: a weak model writes digits as long as it may.

What no schema bounds is bounded to 18 digits, which every reader of JSON can hold in 64 bits. Texts
that follow such a schema follow the one that was sent, too.
"""

from __future__ import annotations

import math
from typing import Any

MOST = 10**18 - 1
# What says more of a number, perhaps elsewhere; it is left as it is.
_OTHERS = {"enum", "const", "multipleOf", "$ref", "allOf", "anyOf", "oneOf"}
_VALUES = {"enum", "const", "default", "examples"}  # no schemas
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


def with_bounded_integers(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose whole numbers have bounds, wherever nothing else speaks of them."""
    changed: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _VALUES or keyword == "allOf":  # there, another part may set bounds
            changed[keyword] = value
        elif keyword in _NAMED and isinstance(value, dict):
            changed[keyword] = {name: _changed(one) for name, one in value.items()}
        else:
            changed[keyword] = _changed(value)
    if schema.get("type") == "integer" and not schema.keys() & _OTHERS:
        if not schema.keys() & {"minimum", "exclusiveMinimum"}:
            changed["minimum"] = _least(schema)
        if not schema.keys() & {"maximum", "exclusiveMaximum"}:
            changed["maximum"] = _most(schema)
    return changed


def _least(schema: dict[str, Any]) -> int:
    upper = [schema[name] for name in ("maximum", "exclusiveMaximum") if _is_number(schema, name)]
    return min([-MOST, *(int(bound) - MOST for bound in upper)])


def _most(schema: dict[str, Any]) -> int:
    lower = [schema[name] for name in ("minimum", "exclusiveMinimum") if _is_number(schema, name)]
    return max([MOST, *(int(bound) + MOST for bound in lower)])


def _is_number(schema: dict[str, Any], name: str) -> bool:
    bound = schema.get(name)  # JSON's 1e999 is read as infinity
    return isinstance(bound, int) or (isinstance(bound, float) and math.isfinite(bound))


def _changed(value: Any) -> Any:
    if isinstance(value, dict):
        return with_bounded_integers(value)
    if isinstance(value, list):
        return [_changed(one) for one in value]
    return value
