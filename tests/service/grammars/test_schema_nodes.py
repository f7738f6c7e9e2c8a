"""Which schemas speak of the same value together."""

from __future__ import annotations

from typing import Any

import pytest

from service.grammars.schema_nodes import JoinedNodes, nodes_of

A = {"properties": {"a": True}}
TAGGED = [
    {"type": "object", "properties": {"k": {"const": one}}, "required": ["k"]} for one in "xy"
]


def joined(schema: dict[str, object]) -> list[dict[str, object]]:
    found = JoinedNodes(schema)
    return [node for node in nodes_of(schema) if node in found]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": A}},
        {"anyOf": [A, {"type": "null"}], "title": "x", "default": None, "$defs": {"b": A}},
        {"type": "object", "anyOf": [A, A]},
        {"allOf": [A]},
        {"oneOf": [A]},
        {"oneOf": TAGGED},
        {"oneOf": [{"type": "object"}, {"type": "integer"}, {"type": "null"}]},
        {"$ref": "#/$defs/b", "$defs": {"b": A}},
        {"properties": {"allOf": A, "$ref": A, "not": {}}},
        {"enum": [{"allOf": [A, A]}], "type": "object"},
    ],
)
def test_schemas_that_stand_alone_are_not_joined(schema):
    assert joined(schema) == []


@pytest.mark.parametrize(
    ("schema", "num"),
    [
        ({"allOf": [A, A]}, 3),
        ({"allOf": [A], "required": ["b"]}, 2),
        ({"anyOf": [A], "oneOf": [A]}, 3),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 3),
        ({"oneOf": [TAGGED[0], {**TAGGED[1], "required": []}]}, 5),
        ({"oneOf": [TAGGED[0], dict(TAGGED[0])]}, 5),
        ({"$ref": "#/$defs/b", **A, "$defs": {"b": {"items": {"$ref": "#/$defs/c"}}, "c": A}}, 4),
        ({"items": {"$ref": "#/$defs/b", "minimum": 5}, "$defs": {"b": {}, "c": {}}}, 2),
        ({"type": "integer", "anyOf": [{"minimum": 5}]}, 2),
        ({"items": {"$ref": "#", "required": ["x"]}}, 2),
        ({"items": {"allOf": [{"$ref": "#x"}, A]}, "$defs": {"a": {"$anchor": "x"}}}, 5),
        ({"items": {"not": A}, "prefixItems": [{}]}, 2),
    ],
)
def test_whatever_is_reached_from_where_schemas_join_is_joined(schema, num):
    assert len(joined(schema)) == num


def test_references_are_not_followed_where_schemas_have_addresses_of_their_own():
    schema = {"items": {"$ref": "#/$defs/b", **A}, "$defs": {"b": {"$id": "x"}, "c": {}}}
    assert len(joined(schema)) == len(list(nodes_of(schema)))


def test_schemas_that_join_others_within_each_other_are_looked_through_once(monkeypatch):
    schema: dict[str, Any] = {"properties": {str(n): {} for n in range(100)}}
    for _ in range(50):
        schema = {"not": schema}
    looked_at: list[dict[str, Any]] = []
    add = JoinedNodes._add

    def counted(self: JoinedNodes, node: dict[str, Any]) -> None:
        looked_at.append(node)
        add(self, node)

    monkeypatch.setattr(JoinedNodes, "_add", counted)
    joined = JoinedNodes(schema)
    nodes = list(nodes_of(schema))
    assert len(looked_at) == len(nodes) == 151
    assert all(node in joined for node in nodes)
