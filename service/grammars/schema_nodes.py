"""Which schemas a schema is made of, and which of them speak of the same value together.

Where several do (`properties` beside `$ref`, the parts of `allOf`), none may be narrowed by itself:
what one lets come the other may ask for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTED = ("enum", "const")
NO_SCHEMAS = frozenset({*LISTED, "default", "examples"})  # hold values
NAMED = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
)  # hold schemas by names of the client's
_APPLIED = frozenset({"$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", *LISTED})
# These join whatever stands beside them; that they cannot all be followed is not known here.
_ALWAYS_JOIN = frozenset({"not", "if", "then", "else", "dependentSchemas", "unevaluatedProperties"})
# What says something of a value's parts or of numbers, so that a schema beside it counts, too.
_SAYING = frozenset(
    {"properties", "required", "additionalProperties", "patternProperties", "minProperties",
     "maxProperties", "items", "prefixItems", "additionalItems", "minimum", "maximum",
     "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)  # fmt: skip


def nodes_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Find the schema and all those in it; of lists, those of each."""
    if isinstance(schema, list):
        for one in schema:
            yield from nodes_of(one)
    elif isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword in NAMED and isinstance(value, dict):
                yield from nodes_of(list(value.values()))
            elif keyword not in NO_SCHEMAS:
                yield from nodes_of(value)


class JoinedNodes:
    """Which schemas of a schema others may speak of the same value with, or of one within it."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._found: set[int] = set()
        self._are_all = False  # where it cannot be told
        nodes = list(nodes_of(schema))
        # Within a schema that has its own address, `#/…` is somewhere else.
        self._has_addresses = any(
            isinstance(node.get(keyword), str) for node in nodes[1:] for keyword in ("$id", "id")
        )
        # The outermost is taken first: whatever is found was found with all that lies in it.
        self._waiting = [node for node in reversed(nodes) if _joins(node)]
        while self._waiting and not self._are_all:
            top = self._waiting.pop()
            if id(top) not in self._found:
                for node in nodes_of(top):
                    self._add(node)

    def __contains__(self, node: dict[str, Any]) -> bool:
        return self._are_all or id(node) in self._found

    def _add(self, node: dict[str, Any]) -> None:
        if id(node) in self._found:
            return
        self._found.add(id(node))
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in node:
                target = None if self._has_addresses else _at(self._schema, node[keyword])
                if target is None:
                    self._are_all = True
                else:
                    self._waiting.append(target)


def _joins(node: dict[str, Any]) -> bool:
    """Whether parts of a node speak of the same value, or of one within it."""
    if node.keys() & _ALWAYS_JOIN or {"properties", "patternProperties"} <= node.keys():
        return True
    parts = node.get("allOf")
    if isinstance(parts, list) and len(parts) > 1:
        return True
    if "oneOf" in node and not _are_told_apart(node["oneOf"]):
        return True  # what one kind no longer allows, it no longer excludes from another
    applied = node.keys() & _APPLIED
    if len(applied) > 1 or (applied and node.keys() & _SAYING):
        return True
    return bool(applied - set(LISTED)) and may_be("number", node) and "type" in node


def types_of(node: dict[str, Any], *, silence: str) -> list[Any]:
    """Return the types that a node's value may be of; silence: what stands for its saying none."""
    kinds = node.get("type", silence)
    return kinds if isinstance(kinds, list) else [kinds]


def may_be(kind: str, node: dict[str, Any]) -> bool:
    """Whether a node's value may be of a type; `number` goes for whole ones, too."""
    kinds = types_of(node, silence=kind)
    return kind in kinds or (kind == "number" and "integer" in kinds)


def _are_told_apart(kinds: Any) -> bool:
    """Whether a name that each kind has shows which it is, or its type does."""
    if not isinstance(kinds, list) or not all(isinstance(kind, dict) for kind in kinds):
        return False
    types = [kind["type"] for kind in kinds if isinstance(kind.get("type"), str)]
    different = {"number" if one == "integer" else one for one in types}
    if len(kinds) == 1 or len(different) == len(kinds):
        return True
    tags = [_tags(kind) for kind in kinds]
    return any(
        all(name in one for one in tags) and len({one[name] for one in tags}) == len(tags)
        for name in (tags[0] if tags else ())
    )


def _tags(kind: dict[str, Any]) -> dict[str, str]:
    """Return the texts that properties which must come always have."""
    properties, required = kind.get("properties"), kind.get("required")
    if kind.get("type") != "object" or not isinstance(properties, dict):
        return {}
    return {
        name: properties[name]["const"]
        for name in (required if isinstance(required, list) else ())
        if isinstance(name, str)
        and isinstance(properties.get(name), dict)
        and isinstance(properties[name].get("const"), str)
    }


def _at(schema: Any, reference: Any) -> dict[str, Any] | None:
    """Return the schema that `#/…` names; None if it is none, or not one of these."""
    if not isinstance(reference, str) or not reference.startswith("#") or "%" in reference:
        return None
    if reference == "#":
        return schema if isinstance(schema, dict) else None
    if not reference.startswith("#/"):
        return None
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, dict) and name in schema:
            schema = schema[name]
        elif isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
            schema = schema[int(name)]
        else:
            return None
    return schema if isinstance(schema, dict) else {}
