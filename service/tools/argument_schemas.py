"""The schema that a call's arguments must follow, out of what a tool says of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service.grammars.json_schema import ANY_OBJECT

if TYPE_CHECKING:
    from service.tools.calls import Schema

# Beside one of these an object's own `properties` are not all that it may have.
_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf")
_OPEN = frozenset({*_OTHERS, "oneOf", "$ref", "if", "not", "$dynamicRef", "minProperties"})


def arguments_schema(parameters: Schema | None) -> dict[str, Any]:
    """Return the schema of a tool's arguments, which are always an object.

    Properties that are not listed are left out, unless the schema says more of them than nothing:
    a weak model that may make up further ones goes on making them up.
    """
    if not parameters:
        return dict(ANY_OBJECT)
    return _closed({**parameters, "type": "object"})


def is_object_schema(parameters: Schema) -> bool:
    """Whether a schema lets its value be an object."""
    kinds = parameters.get("type", "object")
    return kinds == "object" or (isinstance(kinds, list) and "object" in kinds)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Close the objects that list their properties, from a schema's root down."""
    changed = dict(schema)
    if isinstance(items := schema.get("items"), Mapping):
        changed["items"] = _closed(dict(items))
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        changed["properties"] = {
            name: _closed(dict(inner)) if isinstance(inner, Mapping) else inner
            for name, inner in properties.items()
        }
        required = schema.get("required")
        names_others = isinstance(required, list) and any(
            not isinstance(name, str) or name not in properties for name in required
        )
        if not names_others and not _OPEN & schema.keys():
            changed["additionalProperties"] = False
    return changed
