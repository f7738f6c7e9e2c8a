"""The schema that a call's arguments must follow, out of what a tool says of its parameters.

How its objects and numbers come to an end is `service.grammars.json_schema`'s, as for any schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.grammars.json_schema import ANY_OBJECT

if TYPE_CHECKING:
    from service.tools.calls import Schema


def arguments_schema(parameters: Schema | None) -> dict[str, Any]:
    """Return the schema of a tool's arguments, which are always an object."""
    if not parameters:
        return dict(ANY_OBJECT)
    return {**parameters, "type": "object"}


def is_object_schema(parameters: Schema) -> bool:
    """Whether a schema lets its value be an object."""
    kinds = parameters.get("type")
    if kinds is None:
        return True
    return kinds == "object" or (isinstance(kinds, list) and "object" in kinds)
