"""Tells the fields of a JSON schema in words: names, types, bounds, defaults, meanings.

For people: the page at /docs and the tables of docs/api.md are made of these rows. Fields of fields
come with their path, as in `stream_options.include_usage` or `messages[].role`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Node: TypeAlias = "Mapping[str, Any]"

MAX_DEPTH = 8  # of fields in fields; no API here has half as many
REQUIRED = "required"
_SINGULAR = re.compile(r"^(string|integer|number|boolean|object|list)\b")


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One field, in words."""

    path: str
    type: str
    bounds: str
    default: str  # "required" where there is none; empty where silence says nothing
    description: str


class SchemaReader:
    """Reads schemas that refer to others of the same document."""

    def __init__(self, schemas: Mapping[str, Node]) -> None:
        self._schemas = schemas  # by name

    def rows(self, schema: Node) -> list[FieldRow]:
        """List the fields of an object, of each kind if there are several, or of a list's items."""
        return list(dict.fromkeys(self._rows(schema, "", 0)))

    def resolve(self, schema: Node) -> Node:
        """Follow a reference; what stands beside it wins."""
        if "$ref" not in schema:
            return schema
        target = self._schemas[str(schema["$ref"]).rpartition("/")[2]]
        return self.resolve({**target, **{k: v for k, v in schema.items() if k != "$ref"}})

    def variants(self, schema: Node) -> list[Node]:
        """Return the kinds that a value may be of; null is no kind, it means: not given."""
        schema = self.resolve(schema)
        kinds = schema.get("anyOf") or schema.get("oneOf")
        if kinds is None:
            return [] if schema.get("type") == "null" else [schema]
        return [variant for kind in kinds for variant in self.variants(kind)]

    def type_of(self, schema: Node) -> str:
        """Name the type of a value."""
        names = [self._type_name(variant) for variant in self.variants(schema)]
        return " or ".join(dict.fromkeys(names)) or "null"

    def _rows(self, schema: Node, prefix: str, depth: int) -> Iterator[FieldRow]:
        if depth > MAX_DEPTH:
            return
        for variant in self.variants(schema):
            if variant.get("type") == "array":
                inner = f"{prefix.removesuffix('.')}[]." if prefix else ""
                yield from self._rows(variant.get("items", {}), inner, depth + 1)
            required = variant.get("required", ())
            for name, field in variant.get("properties", {}).items():
                yield self._row(prefix + name, field, is_required=name in required)
                yield from self._rows(field, f"{prefix}{name}.", depth + 1)

    def _row(self, path: str, field: Node, *, is_required: bool) -> FieldRow:
        resolved = self.resolve(field)
        bounds = [bound for variant in self.variants(field) for bound in _bounds(variant)]
        bounds += [bound for bound in _bounds(resolved) if bound not in bounds]
        default = ""
        if is_required:
            default = REQUIRED
        elif field.get("default") is not None:
            default = json.dumps(field["default"], ensure_ascii=False)
        return FieldRow(
            path=path,
            type=self.type_of(field),
            bounds=", ".join(dict.fromkeys(bounds)),
            default=default,
            # Of the field, not of the model it holds, which says what it is anywhere.
            description=str(field.get("description") or resolved.get("description") or ""),
        )

    def _type_name(self, schema: Node) -> str:
        if "const" in schema:
            return _json(schema["const"])
        if "enum" in schema:
            return " or ".join(_json(value) for value in schema["enum"])
        kind = schema.get("type")
        if isinstance(kind, list):
            return " or ".join(str(one) for one in kind if one != "null")
        if kind == "array":
            items = schema.get("items")
            return f"list of {_plural(self.type_of(items))}" if items else "list"
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_plural(self.type_of(schema['additionalProperties']))}"
        return str(kind) if kind else "anything"


def _plural(types: str) -> str:
    """Say of the types of items what they are: strings, lists of integers."""
    return " or ".join(_SINGULAR.sub(r"\1s", name) for name in types.split(" or "))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _bounds(schema: Node) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in schema:
            yield (
                f"{sign} {schema[name]:g}" if abs(schema[name]) < 1e6 else f"{sign} {schema[name]}"
            )
    for kind, of_what in (("Length", "characters"), ("Items", "items"), ("Properties", "fields")):
        least, most = schema.get(f"min{kind}"), schema.get(f"max{kind}")
        if least is not None and most is not None:
            yield f"{least} to {most} {of_what}"
        elif least is not None:
            yield f"at least {least} {of_what}"
        elif most is not None:
            yield f"at most {most} {of_what}"
    if "pattern" in schema:
        yield f"as {schema['pattern']}"
    if "multipleOf" in schema:
        yield f"multiples of {schema['multipleOf']}"
