"""Whole numbers are given an end where nothing else speaks of them."""

from __future__ import annotations

import pytest

from service.grammars.integer_bounds import MOST, with_bounded_integers

BOUNDED = {"type": "integer", "minimum": -MOST, "maximum": MOST}


@pytest.mark.parametrize(
    "place",
    [
        lambda schema: schema,
        lambda schema: {"properties": {"type": schema}},
        lambda schema: {"$defs": {"enum": schema}, "$ref": "#/$defs/enum"},
        lambda schema: {"items": schema},
        lambda schema: {"prefixItems": [schema, True]},
        lambda schema: {"anyOf": [schema, {"type": "null"}]},
        lambda schema: {"additionalProperties": schema},
    ],
)
def test_integers_are_bounded_wherever_schemas_stand(place):
    assert with_bounded_integers(place({"type": "integer"})) == place(BOUNDED)


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"type": "integer"}},
        {"enum": [{"type": "integer"}]},
        {"default": {"type": "integer"}},
        {"allOf": [{"type": "integer"}, {"minimum": 10**30}]},
        {"type": "integer", "enum": [10**20]},
        {"type": "integer", "multipleOf": 10**19},
        {"type": "integer", "$ref": "#/$defs/large", "$defs": {"large": {"minimum": 10**20}}},
        {"type": "integer", "minimum": 0, "maximum": 10**40},
        {"type": "number"},
        {"type": ["integer", "null"]},
    ],
)
def test_values_and_what_others_speak_of_are_left_as_they_are(schema):
    assert with_bounded_integers(schema) == schema


@pytest.mark.parametrize(
    ("schema", "added"),
    [
        ({"type": "integer", "minimum": 5}, {"maximum": 5 + MOST}),
        ({"type": "integer", "minimum": 10**30}, {"maximum": 10**30 + MOST}),
        ({"type": "integer", "minimum": -5}, {"maximum": MOST}),
        ({"type": "integer", "exclusiveMaximum": -(10**30)}, {"minimum": -(10**30) - MOST}),
        ({"type": "integer", "maximum": 7.5}, {"minimum": -MOST}),
        ({"type": "integer", "maximum": float("inf")}, {"minimum": -MOST}),
        ({"type": "integer", "exclusiveMinimum": float("-inf")}, {"maximum": MOST}),
    ],
)
def test_bound_that_is_missing_leaves_room_beside_the_one_that_was_sent(schema, added):
    assert with_bounded_integers(schema) == {**schema, **added}
