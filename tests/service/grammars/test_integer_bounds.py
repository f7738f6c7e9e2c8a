"""Whole numbers are given an end wherever one may come and nothing else ends it."""

from __future__ import annotations

import contextlib
import json

import pytest

from service.grammars.errors import InvalidGrammarError
from service.grammars.integer_bounds import MAX_STEP, MOST, with_bounded_integers
from service.grammars.json_schema import schema_grammar
from service.grammars.number_bounds import LIMIT

BOUNDS = {"minimum": -MOST, "maximum": MOST}
BOUNDED = {"type": "integer", **BOUNDS}
BARE = {"type": "integer"}
LARGE = 2 * 10**18
FAR = {"minimum": LARGE, "maximum": 2 * LARGE}
DIGITS_18, DIGITS_19 = "1" * 16 + "02", "1" + "0" * 18


@pytest.mark.parametrize(
    "place",
    [
        lambda schema: schema,
        lambda schema: {"properties": {"type": schema}},
        lambda schema: {"$defs": {"enum": schema}, "$ref": "#/$defs/enum"},
        lambda schema: {"items": schema},
        lambda schema: {"prefixItems": [schema, True]},
        lambda schema: {"anyOf": [schema, {"type": "null"}]},
        lambda schema: {"oneOf": [schema, {"type": "null"}]},
        lambda schema: {"allOf": [schema, {"description": "a number"}]},
        lambda schema: {"additionalProperties": schema},
        lambda schema: {"patternProperties": {"^a": schema}},
    ],
)
def test_integers_are_bounded_wherever_schemas_stand(place):
    given = place({"type": "integer"})
    before = json.dumps(given)
    assert with_bounded_integers(given) == place(BOUNDED)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("schema", "others"),
    [
        ({"type": "integer"}, []),
        ({"type": ["integer"]}, []),
        ({"type": ["integer", "null"]}, ["null"]),
        ({"type": ["null", "integer", "string"]}, ["null", '"9999999999999999999999"']),
        ({"type": ["integer", "null"], "default": None, "description": "x"}, ["null"]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["null"]),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, ["null"]),
        ({"type": ["integer", "null"], "minimum": 5}, ["null"]),
        ({"type": "integer", "exclusiveMinimum": -5}, []),
        ({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": -5}]}, ["5", "-5"]),
        ({"type": ["integer", "null"], "allOf": [{"minimum": 5}]}, ["null"]),
        ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, []),
        ({"type": "integer", "$ref": "#/$defs/a", "$defs": {"a": {"minimum": 5}}}, []),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": ["integer", "null"]}}}, ["null"]),
        ({"type": "integer", "multipleOf": 3}, []),
        ({"type": ["number", "null"], "multipleOf": 1}, ["null"]),
        ({"multipleOf": 2.0, "type": ["number", "string"]}, ['"x"']),
        ({"multipleOf": 3}, ["null", "-3", '"x"', "[]"]),
    ],
)
def test_library_follows_18_digits_and_no_more(accepts, schema, others):
    assert accepts(schema, DIGITS_18)
    assert not accepts(schema, DIGITS_19)
    assert not accepts(schema, "9" * 19)
    assert all(accepts(schema, text) for text in others)


@pytest.mark.parametrize(
    "schema", [{"type": ["integer", "null"]}, {"type": "integer", "maximum": 5}]
)
def test_library_follows_18_digits_below_zero(accepts, schema):
    assert accepts(schema, "-" + DIGITS_18)
    assert not accepts(schema, "-" + DIGITS_19)


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        ({"type": ["integer", "null"], "enum": [LARGE, None]}, [str(LARGE), "null"]),
        ({"type": "integer", "const": LARGE}, [str(LARGE)]),
        ({"type": "number"}, ["6.02e23", "9" * 30]),
        ({"type": ["integer", "number"]}, ["6.02e23"]),
        ({"type": "number", "minimum": 0}, ["9" * 30, "0.5"]),
        ({"type": ["number", "null"], "multipleOf": 0.5}, ["9" * 30, "0.5", "null"]),
        ({"minimum": 0}, ["9" * 30, "0.5", "null", '"x"']),
        ({"type": "integer", "minimum": LARGE}, [str(LARGE)]),
        ({"allOf": [{"type": "integer"}, FAR]}, [str(LARGE)]),
        ({"$ref": "#/$defs/a", **FAR, "$defs": {"a": {"type": "integer"}}}, [str(LARGE)]),
        ({"allOf": [{"type": "integer"}, {"minimum": LARGE}]}, [str(LARGE)]),
        ({"type": "integer", "anyOf": [{"maximum": -LARGE}]}, [str(-LARGE)]),
        ({"allOf": [{"type": "integer"}, {"enum": [LARGE]}]}, [str(LARGE)]),
        ({"type": "integer", "multipleOf": 10_000}, ["123400000"]),
    ],
)
def test_what_a_schema_says_itself_can_still_be_followed(accepts, schema, texts):
    assert all(accepts(schema, text) for text in texts)


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"type": "integer"}},
        {"enum": [{"type": "integer"}]},
        {"default": {"type": "integer"}},
        {"examples": [{"type": "integer"}]},
        {"type": "integer", "enum": [LARGE]},
        {"type": "integer", "multipleOf": MAX_STEP + 1},
        {"type": "integer", "minimum": 0, "maximum": 10**40},
        {"type": "number"},
        {"type": ["number", "integer"]},
        {"type": "string", "multipleOf": 3},
        {"type": "number", "minimum": 0},
        {"type": "number", "multipleOf": 0.5},
        {"minimum": 0},
    ],
)
def test_values_and_other_numbers_are_left_as_they_are(schema):
    assert with_bounded_integers(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [BARE, {"minimum": LARGE}]},
        {**BARE, "anyOf": [{"maximum": -LARGE}]},
        {**BARE, "$ref": "#/$defs/a", "$defs": {"a": {"exclusiveMinimum": LARGE}}},
        {"$ref": "#/$defs/a", "minimum": LARGE, "$defs": {"a": BARE}},
        {"allOf": [BARE, {"enum": [LARGE]}]},
        {"properties": {"a": BARE}, "const": {"a": LARGE}},
        {"properties": {"a": BARE}, "patternProperties": {"a": {"minimum": LARGE}}},
    ],
)
def test_parts_of_one_value_have_64_bits_where_18_digits_leave_no_room(schema):
    bounded = json.dumps(with_bounded_integers(schema))
    assert str(MOST) not in bounded
    assert bounded.count(str(LIMIT)) == 2


def test_parts_of_one_value_are_left_as_they_are_where_their_steps_are_large():
    schema = {"allOf": [BARE, {"multipleOf": 37}, {"multipleOf": 41}]}
    assert with_bounded_integers(schema) == schema


def test_large_numbers_of_other_values_do_not_matter():
    large = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    either = {"type": "integer", "anyOf": [{"minimum": 1}]}
    given = {"properties": {"a": large, "b": {"type": "integer"}, "c": {"enum": [LARGE]}}}
    bounded = with_bounded_integers(given)["properties"]
    assert (bounded["a"], bounded["b"]) == (large, BOUNDED)
    joined = with_bounded_integers({"properties": {"a": large, "b": either}})["properties"]
    assert joined == {"a": large, "b": either | BOUNDS}


@pytest.mark.parametrize(
    ("schema", "added"),
    [
        ({"type": "integer", "minimum": 5}, {"maximum": MOST}),
        ({"type": "integer", "minimum": 2**60}, {"maximum": LIMIT}),
        ({"type": "integer", "minimum": MOST}, {"maximum": LIMIT}),
        ({"type": "integer", "minimum": -5}, {"maximum": MOST}),
        ({"type": "integer", "exclusiveMaximum": -(2**60)}, {"minimum": -LIMIT}),
        ({"type": "integer", "maximum": 7.5}, {"minimum": -MOST}),
        ({"type": "integer", "maximum": float("inf")}, {"minimum": -MOST}),
        ({"type": "integer", "exclusiveMinimum": float("-inf")}, {"maximum": MOST}),
        ({"type": "integer", "multipleOf": float("inf")}, BOUNDS),
        ({"type": "integer", "multipleOf": 0.1}, BOUNDS),
        ({"type": "integer", "multipleOf": True}, BOUNDS),
        ({"type": "integer", "exclusiveMinimum": True}, {"maximum": MOST}),
    ],
)
def test_bound_that_is_missing_leaves_room_beside_the_one_that_was_sent(schema, added):
    assert with_bounded_integers(schema) == {**schema, **added}


@pytest.mark.parametrize(
    "keyword", ["type", "allOf", "oneOf", "enum", "multipleOf", "minimum", "$ref"]
)
@pytest.mark.parametrize("value", [None, True, 5, -0.0, 1e999, "x", [], [5], {}, {"minimum": []}])
def test_words_that_hold_what_they_should_not_are_no_fault_of_the_servers(keyword, value):
    schema = {"type": "integer", "anyOf": [{"type": "integer"}, value], keyword: value}
    assert with_bounded_integers(schema).keys() >= schema.keys()
    with contextlib.suppress(InvalidGrammarError):
        schema_grammar(schema)


@pytest.mark.parametrize("step", [7, 97, 199, 251, MAX_STEP, 0.001])
def test_multiples_within_bounds_are_no_more_work_than_masks_may_be(accepts, step):
    few = round(10**17 // max(step, 1) * max(step, 1))
    assert accepts({"type": "integer", "multipleOf": step}, str(few))
