"""What arguments must follow."""

from __future__ import annotations

import pytest

from service.tools.argument_schemas import arguments_schema, is_object_schema

STRING = {"type": "string"}


@pytest.mark.parametrize("parameters", [None, {}])
def test_silence_takes_any_object(parameters):
    assert arguments_schema(parameters) == {"type": "object"}


def test_arguments_are_an_object_also_where_the_schema_does_not_say_so():
    assert arguments_schema({"required": ["a"]})["type"] == "object"


def test_objects_that_list_their_properties_have_no_others():
    inner = {"type": "object", "properties": {"b": STRING}}
    found = arguments_schema(
        {"properties": {"a": inner, "c": {"type": "array", "items": inner}, "d": True}}
    )
    closed = {**inner, "additionalProperties": False}
    assert found["additionalProperties"] is False
    assert found["properties"] == {"a": closed, "c": {"type": "array", "items": closed}, "d": True}


def test_empty_list_of_properties_takes_none():
    given = {"type": "object", "properties": {}}
    assert arguments_schema(given) == {**given, "additionalProperties": False}


@pytest.mark.parametrize(
    "more",
    [
        {"additionalProperties": STRING},
        {"patternProperties": {"^x": STRING}},
        {"anyOf": [{"properties": {"b": STRING}}]},
        {"$ref": "#/$defs/x"},
        {"required": ["b"]},
    ],
)
def test_objects_that_say_more_of_their_properties_stay_as_they_are(more):
    given = {"type": "object", "properties": {"a": STRING}, **more}
    assert arguments_schema(given) == given


def test_given_schema_is_not_changed():
    given = {"properties": {"a": {"properties": {"b": STRING}}}}
    arguments_schema(given)
    assert given == {"properties": {"a": {"properties": {"b": STRING}}}}


@pytest.mark.parametrize(
    ("kinds", "is_one"),
    [("object", True), (["object", "null"], True), ("string", False), (["array"], False)],
)
def test_only_schemas_of_objects_are_taken(kinds, is_one):
    assert is_object_schema({"type": kinds}) is is_one
    assert is_object_schema({})
