"""Objects have no properties but those that a schema lists, unless it says more of them."""

from __future__ import annotations

import json
import time

import pytest

from service.grammars.closed_objects import with_closed_objects

NUMBER = {"type": "integer"}
OPEN = {"type": "object", "properties": {"a": NUMBER}}
CLOSED = {**OPEN, "additionalProperties": False}
NO_OBJECT = {"type": "string"}


@pytest.mark.parametrize(
    "place",
    [
        lambda schema: schema,
        lambda schema: {"items": schema},
        lambda schema: {"anyOf": [schema, {"type": "null"}]},
        lambda schema: {"$ref": "#/$defs/one", "$defs": {"one": schema}},
        lambda schema: {"$ref": "#/definitions/one", "definitions": {"one": schema}},
        lambda schema: {"properties": {"b": schema}, "additionalProperties": False},
        lambda schema: {"items": {"items": {"anyOf": [{"items": schema}, NO_OBJECT]}}},
        lambda schema: {"prefixItems": [schema]},
        lambda schema: {"additionalProperties": schema},
        lambda schema: {"allOf": [schema], "description": "x"},
        lambda schema: {"oneOf": [schema, NO_OBJECT]},
        lambda schema: {"type": "object", "anyOf": [schema, schema]},
        lambda schema: {"$ref": "#/$defs/one", "title": "x", "$defs": {"one": schema}},
    ],
)
def test_lists_of_properties_are_whole_wherever_they_stand_alone(place):
    given = place(OPEN)
    before = json.dumps(given)
    assert with_closed_objects(given) == place(CLOSED)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**OPEN, "additionalProperties": True},
        {**OPEN, "additionalProperties": NUMBER},
        {**OPEN, "patternProperties": {"^x": NUMBER}},
        {**OPEN, "required": ["b"]},
        {**OPEN, "anyOf": [{"properties": {"b": NUMBER}}, {"properties": {"c": NUMBER}}]},
        {**OPEN, "allOf": [{"properties": {"b": NUMBER}}]},
        {**OPEN, "$ref": "#/$defs/b", "$defs": {"b": {"anyOf": [NUMBER]}}},
        {**OPEN, "minProperties": 3},
        {"allOf": [{"$ref": "#/$defs/one"}, OPEN], "$defs": {"one": OPEN}},
        {"oneOf": [OPEN, {"properties": {"b": NUMBER}}]},
        {"properties": {"a": OPEN}, "patternProperties": {"^a": OPEN}, "required": ["b"]},
        {"properties": {"a": OPEN}, "const": {"a": {"a": 1, "b": 2}}},
        {"not": OPEN},
        {"$ref": "#/$defs/one", "required": ["b"], "$defs": {"one": OPEN}},
        {"$ref": "#here", "required": ["b"], "$defs": {"one": {**OPEN, "$anchor": "here"}}},
        {"const": OPEN},
        {"enum": [OPEN]},
        {"properties": "x"},
    ],
)
def test_what_says_more_is_left_as_it_is(schema):
    assert with_closed_objects(schema) == schema


DEFINED = {"$defs": {"B": {"type": "object", "properties": {"b": NUMBER}}}}
TWO = {"B": {"properties": {"kind": {"const": "b"}, "b": NUMBER}, "required": ["kind", "b"]}}
TWO["C"] = {"properties": {"kind": {"const": "c"}}, "required": ["kind"]}
REFS = [{"$ref": "#/$defs/B"}, {"$ref": "#/$defs/C"}]
NESTED = {"N": {"properties": {"a": {"properties": {"b": NUMBER}, "required": ["b"]}}}}
KIND = {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        (
            {"$ref": "#/$defs/B", "properties": {"x": NUMBER}, "required": ["x"], **DEFINED},
            ['{"b": 2, "x": 1}', '{"x": 1}'],
        ),
        ({**KIND, "anyOf": REFS, "$defs": TWO}, ['{"kind": "b", "b": 2}', '{"kind": "c"}']),
        ({**KIND, "oneOf": REFS, "$defs": TWO}, ['{"kind": "b", "b": 2}', '{"kind": "c"}']),
        ({**KIND, "anyOf": list(TWO.values())}, ['{"kind": "b", "b": 2}', '{"kind": "c"}']),
        (
            {"required": ["c"], "anyOf": [{"properties": {"a": NUMBER}}, DEFINED["$defs"]["B"]]},
            ['{"a": 1, "c": 2}', '{"b": 1, "c": 2}'],
        ),
        (
            {"allOf": [{"$ref": "#/$defs/B"}, {"properties": {"x": NUMBER}}], **DEFINED},
            ['{"b": 1, "x": 2}'],
        ),
        (
            {"properties": {"a": OPEN}, "$ref": "#/$defs/N", "$defs": NESTED},
            ['{"a": {"a": 1, "b": 2}}'],
        ),
    ],
)
def test_objects_that_several_schemas_speak_of_can_have_the_properties_of_all(
    accepts, schema, texts
):
    assert [text for text in texts if not accepts(schema, text)] == []


TAGGED = [
    {"type": "object", "properties": {"kind": {"const": kind}, "of": OPEN}, "required": ["kind"]}
    for kind in ("x", "y")
]


@pytest.mark.parametrize(
    ("schema", "closed", "with_others"),
    [
        (OPEN, '{"a": 1}', '{"a": 1, "z": 2}'),
        ({"items": {"$ref": "#/$defs/B"}, **DEFINED}, '[{"b": 1}]', '[{"b": 1, "z": 2}]'),
        ({"oneOf": TAGGED}, '{"kind": "x", "of": {"a": 1}}', '{"kind": "x", "of": {"z": 1}}'),
        ({"oneOf": TAGGED}, '{"kind": "y"}', '{"kind": "y", "z": 1}'),
    ],
)
def test_objects_that_one_schema_speaks_of_have_what_it_lists(accepts, schema, closed, with_others):
    assert accepts(schema, closed)
    assert not accepts(schema, with_others)


def test_many_references_to_one_large_schema_take_no_time():
    large = {"properties": {f"p{i}": {"items": OPEN} for i in range(900)}}
    parts = [{"$ref": "#/$defs/large", "required": ["b"]}] * 5_000
    begun = time.process_time()
    with_closed_objects({"items": parts, "$defs": {"large": large}})
    assert time.process_time() - begun < 1


def test_an_empty_list_leaves_an_empty_object():
    closed = with_closed_objects({"properties": {}})
    assert closed == {"properties": {}, "additionalProperties": False}
