"""Objects have no properties but those that a schema lists, unless it says more of them."""

from __future__ import annotations

import json

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
        {"const": OPEN},
        {"enum": [OPEN]},
        {"properties": "x"},
    ],
)
def test_what_says_more_is_left_as_it_is(schema):
    assert with_closed_objects(schema) == schema


def test_an_empty_list_leaves_an_empty_object():
    closed = with_closed_objects({"properties": {}})
    assert closed == {"properties": {}, "additionalProperties": False}
