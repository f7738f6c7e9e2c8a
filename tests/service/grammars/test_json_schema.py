"""JSON schemas as grammars: what is refused, and how large they may be."""

from __future__ import annotations

import json
import time

import pytest
from llguidance import LLMatcher

from benchmarks.structured_schemas import NUM_SCHEMAS, REFUSED, cases
from service.grammars.errors import InvalidGrammarError
from service.grammars.json_schema import schema_grammar
from service.grammars.limits import (
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_PROPERTIES,
    MAX_SCHEMA_NODES,
    MAX_SOURCE_BYTES,
)
from service.grammars.wanted import TextForm, TextFormKind


def grammar_of(schema):
    return TextForm(TextFormKind.JSON_SCHEMA, "json_schema", schema=schema).grammar()


def refusal(schema):
    with pytest.raises(InvalidGrammarError) as refused:
        grammar_of(schema)
    return str(refused.value)


def test_two_hundred_schemas_are_read_or_refused_as_they_should_be():
    found = list(cases())
    assert len(found) == NUM_SCHEMAS
    assert len({json.dumps(case.schema) for case in found}) == NUM_SCHEMAS
    for case in found:
        if case.is_refused:
            assert refusal(case.schema), case.name
        else:
            assert grammar_of(case.schema), case.name


@pytest.mark.parametrize("schema", REFUSED)
def test_what_cannot_be_followed_is_named(schema):
    named = refusal(schema)
    keywords = [*schema, *map(str, schema.values()), "pattern"]
    assert any(keyword in named for keyword in keywords), named


def nested(depth):
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(100_000), f"more than {MAX_DEPTH} levels"),
        ({"enum": list(range(100_000))}, f"more than {MAX_CHOICES} values"),
        ({"$defs": {str(i): {"enum": ["a"] * 100} for i in range(60)}}, "values of `enum`"),
        ({"properties": {f"p{i}": {} for i in range(5_000)}}, f"more than {MAX_PROPERTIES}"),
        ({"items": [{"items": [1] * 5_000}] * 10}, f"more than {MAX_SCHEMA_NODES} parts"),
        ({"const": "x" * 1_000_000}, f"at most {MAX_SOURCE_BYTES} are taken"),
        ({"type": "string", "pattern": "(" * 30_000 + ")" * 30_000}, "pattern"),
    ],
)
def test_bombs_are_refused_within_a_second(schema, words):
    begun = time.process_time()
    assert words in refusal(schema)
    assert time.process_time() - begun < 1


@pytest.mark.usefixtures("others_objects_set_aside")
def test_the_largest_that_are_taken_are_read_within_a_second():
    begun = time.process_time()
    recursive = {f"p{i}": {"$ref": "#"} for i in range(MAX_PROPERTIES)}
    assert grammar_of({"properties": recursive})
    assert grammar_of({"enum": [f"value {i}" for i in range(MAX_CHOICES)]})
    assert time.process_time() - begun < 1


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("num", "kind", "are_required"),
    [(MAX_PROPERTIES, TEXT, True), (500, TEXT, False), (400, WHOLE, True), (400, WHOLE, False)],
)
def test_as_many_properties_as_are_documented_can_be_followed(accepts, num, kind, are_required):
    names = [f"property_{i}" for i in range(num)]
    value = {"property_0": "x" if kind is TEXT else 5}
    schema = {"properties": dict.fromkeys(names, kind), "required": names if are_required else []}
    begun = time.process_time()
    written = dict.fromkeys(names, value["property_0"]) if are_required else value
    assert accepts(schema, json.dumps(written))
    if not are_required:
        assert accepts(schema, json.dumps({names[-1]: value["property_0"]}))
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("schema", [True, False, {}, {"type": "object"}])
def test_schemas_that_say_little_are_schemas(schema):
    if schema is False:
        assert "not" in refusal(schema)
    else:
        assert grammar_of(schema)


def test_a_schema_cannot_change_how_white_space_is_followed():
    sneaky = {"x-guidance": {"whitespace_flexible": True}, "type": "object"}
    assert schema_grammar(sneaky) == schema_grammar({"type": "object"})


def test_grammar_is_what_the_library_reads():
    assert not LLMatcher.validate_grammar(schema_grammar({"type": "object"}))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "minProperties": 2},
        {"additionalProperties": {"type": "integer"}, "minProperties": 2},
        {"patternProperties": {"^a": True}, "minProperties": 3, "required": ["a"]},
        {"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"minProperties": 2}}},
    ],
)
def test_names_that_might_come_twice_are_refused(schema):
    assert "minProperties" in refusal(schema)


@pytest.mark.parametrize(
    ("schema", "texts", "others"),
    [
        ({"type": "object", "minProperties": 1}, ['{"z": 1}'], ["{}"]),
        (
            {"properties": {"a": {}}, "required": ["a"], "minProperties": 2, "type": "object"},
            ['{"a": 1, "b": 2}'],
            ['{"a": 1}', '{"a": 1, "a": 2}'],
        ),
        ({"type": "string", "minProperties": 5}, ['"x"'], ["{}"]),
    ],
)
def test_numbers_of_properties_are_followed_where_names_differ(accepts, schema, texts, others):
    assert all(accepts(schema, text) for text in texts)
    assert not any(accepts(schema, text) for text in others)
