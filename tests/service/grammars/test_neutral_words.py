"""Words that say nothing are as good as absent."""

from __future__ import annotations

import pytest

from service.grammars.neutral_words import without_neutral_words

NULLS = dict.fromkeys(
    ["type", "properties", "required", "items", "enum_", "anyOf", "$ref", "$defs", "minimum",
     "pattern", "additionalProperties", "uniqueItems", "not", "if", "format", "title"]
)  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        NULLS,
        {"uniqueItems": False},
        {"dependencies": {}, "dependentRequired": {}, "dependentSchemas": {}},
        {"propertyNames": True, "unevaluatedItems": {}, "unevaluatedProperties": True},
        {"propertyNames": {}},
    ],
)
def test_neutral_words_are_taken_wherever_schemas_stand(accepts, words):
    whole = {"type": "integer"}
    schema = {"type": "object", "properties": {"a": whole | {"x": None}}, "required": ["a"]}
    schema = {**words, "type": "array", "items": {**words, **schema}}
    assert accepts(schema, '[{"a": 5}]')
    assert not accepts(schema, '[{"a": "x"}]')
    assert not accepts(schema, '[{"b": 5}]')


@pytest.mark.parametrize(
    "schema",
    [
        {"const": None},
        {"enum": [None, {"type": None}]},
        {"default": None, "examples": [{"type": None}]},
        {"properties": {"a": {"const": {"type": None}}, "uniqueItems": False}},
        {"uniqueItems": True},
        {"uniqueItems": 0},
        {"propertyNames": {"pattern": "x"}},
        {"dependentRequired": {"a": ["b"]}},
    ],
)
def test_other_words_are_left_as_they_are(schema):
    assert without_neutral_words(schema) == schema


def test_null_is_a_value_where_values_are_listed(accepts):
    assert accepts({"const": None}, "null")
    assert not accepts({"const": None}, "5")
    assert accepts({"enum": [None, 1]}, "null")
