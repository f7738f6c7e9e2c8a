"""Two hundred JSON schemas of growing nastiness: what people send, and what makes grammars hard.

Each has a subject that a prompt can ask for. The last ones hold keywords that cannot be followed,
which docs/structured_output.md lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Schema: TypeAlias = "dict[str, Any]"

NUM_SCHEMAS = 200
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
YES_NO: Schema = {"type": "boolean"}
SUBJECTS = ("person", "book", "city", "recipe", "server", "invoice", "song", "car", "pull request")
COLOURS = ["red", "green", "blue", "très clair", 'quoted "grey"', "tab\there", "日本"]


@dataclass(frozen=True, slots=True)
class Case:
    """One schema, and what is asked with it."""

    name: str
    schema: Schema
    is_refused: bool = False  # it holds what cannot be followed

    @property
    def question(self) -> str:
        """Return what a prompt asks for."""
        return f"Describe a {self.name.rpartition(' of a ')[2]} as JSON."


def closed(properties: Schema, *required: str) -> Schema:
    """Return an object of these properties alone, all required unless some are named."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        "additionalProperties": False,
    }


def flat(n: int) -> Schema:
    """Return objects of one to ten plain properties."""
    kinds = (TEXT, WHOLE, NUMBER, YES_NO, {"type": "null"})
    names = ("name", "count", "price", "active", "parent", "title", "size", "rate", "open", "x-y z")
    shift = n // len(names)
    return closed({names[i]: kinds[(i + shift) % len(kinds)] for i in range(1 + n % len(names))})


def optional(n: int) -> Schema:
    """Return objects whose properties may be left out."""
    properties = {f"field_{i}": (TEXT, WHOLE, YES_NO)[i % 3] for i in range(2 + n)}
    return closed(properties, *[f"field_{i}" for i in range(0, 2 + n, 2)])


def listed(n: int) -> Schema:
    """Return enums and constants, of other characters and kinds, too."""
    mixed = [None, True, 3, -1.5, "text", [1, 2], {"a": "b"}]
    return closed(
        {
            "kind": {"enum": COLOURS[: 1 + n % len(COLOURS)]},
            "mixed": {"enum": mixed[: 1 + n % len(mixed)]},
            "version": {"const": n},
        }
    )


def nested(n: int) -> Schema:
    """Return objects within each other."""
    inner: Schema = closed({"value": WHOLE, "label": {"type": "string", "maxLength": 4 + n}})
    for level in range(1 + n % 12):
        inner = closed({f"level_{level}": inner, "id": {"type": "integer", "minimum": 0}})
    return inner


def lists(n: int) -> Schema:
    """Return lists of bounded lengths, lists of lists, and tuples."""
    items: tuple[Schema, ...] = (
        {"type": "array", "items": WHOLE, "minItems": n % 3, "maxItems": 3 + n % 3},
        {
            "type": "array",
            "maxItems": 3,
            "items": {"type": "array", "items": YES_NO, "minItems": 1, "maxItems": 2},
        },
        {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2},
        {"type": "array", "items": closed({"id": WHOLE, "ok": YES_NO}), "maxItems": 2},
    )
    return closed({"items": items[n % len(items)], "total": {"type": "integer", "minimum": n}})


def recursive(n: int) -> Schema:
    """Return trees and chains that name themselves."""
    tree = closed(
        {
            "label": {"type": "string", "maxLength": 4 + n},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1 + n % 2},
        }
    )
    chain = closed(
        {
            "value": {"type": "integer", "minimum": 0, "maximum": 10 * (n + 1)},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/chain"}]},
        }
    )
    kind = ("tree", "chain")[n % 2]
    return {"$ref": f"#/$defs/{kind}", "$defs": {"tree": tree, "chain": chain}}


FORMATS = (
    *("date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "hostname", "uri"),
    "duration",
)


def formats(n: int) -> Schema:
    """Return strings of well-known forms."""
    chosen = [FORMATS[(n + i) % len(FORMATS)] for i in range(1 + n % 3)]
    return closed({name: {"type": "string", "format": name} for name in chosen})


def unions(n: int) -> Schema:
    """Return values of several kinds."""
    small, named = closed({"n": WHOLE}), closed({"kind": {"const": "named"}, "name": TEXT})
    needed = {"type": "object", "properties": {"n": WHOLE}, "required": ["n"]}
    kinds: tuple[Schema, ...] = (
        {"anyOf": [small, named]},
        {"type": ["integer", "null", "boolean"]},
        {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
        {"allOf": [needed, small]},
        {"anyOf": [TEXT, {"type": "array", "items": WHOLE, "maxItems": 3}]},
    )
    return closed({"value": kinds[n % len(kinds)], "note": {"type": "integer", "minimum": n}})


def bounded(n: int) -> Schema:
    """Return numbers within bounds, and strings of patterns and lengths."""
    low = -(10**n) if n % 2 else n
    return closed(
        {
            "whole": {"type": "integer", "minimum": low, "maximum": low + 7 * (n + 1)},
            "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1 + n / 8},
            "tens": {"type": "integer", "multipleOf": 10, "minimum": 0, "maximum": 500},
            "code": {"type": "string", "pattern": f"^[A-Z]{{2}}-[0-9]{{1,{1 + n}}}$"},
            "short": {"type": "string", "minLength": 1, "maxLength": 3 + n},
        }
    )


def open_objects(n: int) -> Schema:
    """Return objects with names that no schema knows."""
    kinds: tuple[Schema, ...] = (
        {"type": "object", "additionalProperties": WHOLE, "maxProperties": 3 + n},
        {
            "type": "object",
            "patternProperties": {"^x_[a-z]{1,5}$": YES_NO},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 3 + n,
        },
    )
    return kinds[n % 2]


def big(n: int) -> Schema:
    """Return what has many parts."""
    wide = closed({f"p{i}": YES_NO for i in range(20 + 5 * n)})
    choice = closed({"code": {"enum": [f"code-{i:04}" for i in range(100 * (n + 1))]}})
    references = closed({f"r{i}": {"$ref": "#/$defs/one"} for i in range(10 + n)}) | {
        "$defs": {"one": {"enum": ["yes", "no"]}}
    }
    return (wide, choice, references)[n % 3]


# What cannot be followed token by token, and is refused by name.
REFUSED: tuple[Schema, ...] = (
    {"not": {"type": "string"}},
    {"type": "array", "items": WHOLE, "uniqueItems": True},
    {"type": "array", "contains": {"const": 3}},
    {"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"type": "string"}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "object", "unevaluatedProperties": False},
    {"$dynamicRef": "#node"},
    {"type": "string", "pattern": "^(?=a)b"},
    {"type": "string", "format": "colour"},
    {"$ref": "https://example.org/schema.json"},
    {"type": "string", "pattern": "(a"},
)

# How often each kind comes; together, with the refused ones, two hundred.
KINDS: tuple[tuple[Callable[[int], Schema], int], ...] = (
    (flat, 40),
    (optional, 12),
    (listed, 18),
    (nested, 24),
    (lists, 20),
    (recursive, 12),
    (formats, 20),
    (unions, 16),
    (bounded, 12),
    (open_objects, 4),
    (big, 10),
)


def cases() -> Iterator[Case]:
    """Return all of them, the easy ones first."""
    for make, times in KINDS:
        for n in range(times):
            yield Case(f"{make.__name__} {n} of a {SUBJECTS[n % len(SUBJECTS)]}", make(n))
    for n, schema in enumerate(REFUSED):
        wrapped = schema if n % 2 else closed({"value": schema})
        yield Case(f"refused {n} of a {SUBJECTS[n % len(SUBJECTS)]}", wrapped, is_refused=True)
