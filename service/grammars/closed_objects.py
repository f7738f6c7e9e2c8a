"""Objects that end: what a schema lists of an object is all there is, unless it says more of it.

By itself `properties` allows any others beside them, and a weak model that may make up further ones
goes on making them up. Texts that follow the closed schema follow the one that was sent, too.
"""

from __future__ import annotations

from typing import Any

# Beside one of these an object's own `properties` are not all that it may have.
_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf")
_OPEN = frozenset({*_OTHERS, "oneOf", "$ref", "if", "not", "$dynamicRef", "minProperties"})
_DEFINITIONS = ("$defs", "definitions")


def with_closed_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have no properties but those it lists, where it lists any."""
    closed = _closed(schema)
    if _is_anywhere("allOf", schema):  # which may join a definition with further properties
        return closed
    for keyword in _DEFINITIONS:
        if isinstance(definitions := schema.get(keyword), dict):
            closed[keyword] = {name: _closed_if_any(one) for name, one in definitions.items()}
    return closed


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    changed = dict(schema)
    if "items" in schema:
        changed["items"] = _closed_if_any(schema["items"])
    properties = schema.get("properties")
    if isinstance(properties, dict):
        changed["properties"] = {name: _closed_if_any(one) for name, one in properties.items()}
        required = schema.get("required")
        names_others = isinstance(required, list) and any(
            not isinstance(name, str) or name not in properties for name in required
        )
        if not names_others and not _OPEN & schema.keys():
            changed["additionalProperties"] = False
    elif isinstance(kinds := schema.get("anyOf"), list):  # of which none adds to the others
        changed["anyOf"] = [_closed_if_any(kind) for kind in kinds]
    return changed


def _closed_if_any(schema: Any) -> Any:
    return _closed(schema) if isinstance(schema, dict) else schema


def _is_anywhere(keyword: str, value: Any) -> bool:
    """Whether a word is a name in a value of JSON, at any depth."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if keyword in one:
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False
