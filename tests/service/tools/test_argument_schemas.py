"""What arguments must follow."""

from __future__ import annotations

import pytest

from service.tools.argument_schemas import arguments_schema, is_object_schema


@pytest.mark.parametrize("parameters", [None, {}])
def test_silence_takes_any_object(parameters):
    assert arguments_schema(parameters) == {"type": "object"}


def test_arguments_are_an_object_also_where_the_schema_does_not_say_so():
    assert arguments_schema({"required": ["a"]})["type"] == "object"


def test_given_schema_is_not_changed():
    given = {"properties": {"a": {"type": "string"}}}
    assert arguments_schema(given) == {**given, "type": "object"}
    assert given == {"properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("kinds", "is_one"),
    [
        ("object", True),
        (None, True),
        (["object", "null"], True),
        ("string", False),
        (["array"], False),
    ],
)
def test_only_schemas_of_objects_are_taken(kinds, is_one):
    assert is_object_schema({"type": kinds}) is is_one
    assert is_object_schema({})
