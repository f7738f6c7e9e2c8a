"""Short ends of JSON that has begun."""

from __future__ import annotations

import json

import pytest

from service.grammars.json_schema import schema_grammar
from service.worker.grammars import GrammarFactory
from service.worker.json_ending import JsonEnding, JsonPlace

OPEN, ESCAPED, OUTSIDE = JsonPlace(True), JsonPlace(True, True), JsonPlace()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a', OPEN),
        ('{"a"', OUTSIDE),
        ('{"a": "b\\', ESCAPED),
        ('{"a": "b\\"', OPEN),
        ('{"a": "b\\\\"', OUTSIDE),
        ('{"a": "{[", "c": 1', OUTSIDE),
        ("[1, 2", OUTSIDE),
    ],
)
def test_place_is_the_same_however_the_text_is_cut(text, place):
    assert JsonPlace().after(text.encode()) == place
    for cut in range(len(text)):
        begun = JsonPlace().after(text[:cut].encode())
        assert begun.after(text[cut:].encode()) == place


ANY = {"type": "object", "additionalProperties": True}
TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "label": {"type": "string"},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
            },
            "required": ["label", "next"],
            "additionalProperties": False,
        }
    },
}


def of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    ("schema", "begun"),
    [
        (ANY, '{"a": {"b": [1, {"c": "unfinished'),
        (ANY, '{"a": "an escape\\'),
        (TREE, '{"label": "x", "next": {"label": "y'),
        (of(n={"type": "integer", "minimum": 500}), '{"n": 1'),
        (of(n={"type": "number"}), '{"n": -0.'),
        (of(s={"type": "string", "minLength": 20}), '{"s": "a'),
        (of(s={"type": "string", "pattern": "^[A-Z]{3}-[0-9]+$"}), '{"s": "A'),
        (of(t={"type": "string", "format": "time"}), '{"t": "20:00:00.000'),
        (of(t={"type": "string", "format": "date-time"}), '{"t": "2026-'),
        (of(d={"type": "string", "format": "duration"}), '{"d": "P200'),
        (of(e={"type": "string", "format": "email"}), '{"e": "some.body'),
        (of(u={"type": "string", "format": "uuid"}), '{"u": "'),
        (of(i={"type": "string", "format": "ipv4"}), '{"i": "1'),
        (of(l={"type": "array", "items": {"type": "boolean"}, "minItems": 3}), '{"l": ['),
        (of(k={"enum": ["red", 'the "blue" one', 7]}), '{"k": "t'),
    ],
)
def test_text_that_has_begun_is_ended(tiny_tokenizer, schema, begun):
    constraint = GrammarFactory(tiny_tokenizer).compile(schema_grammar(schema), [], 10_000)
    end = constraint._end
    tokens = tiny_tokenizer.encode(begun, add_special_tokens=False)
    for token_id in tokens:
        constraint.advance(token_id)
    assert constraint.failure is None
    found = end._ending.find(constraint._matcher, end._place, 192)
    assert found is not None
    for token_id in found:
        constraint.advance(token_id)
    assert constraint.failure is None
    tokens += found
    text = tiny_tokenizer.decode(tokens)
    assert text.startswith(begun)
    assert json.loads(text) is not None


def test_end_that_is_too_long_is_not_found(tiny_tokenizer):
    schema = of(s={"type": "string", "minLength": 400})
    constraint = GrammarFactory(tiny_tokenizer).compile(schema_grammar(schema), [], 10_000)
    ending = constraint._end._ending
    assert isinstance(ending, JsonEnding)
    assert ending.find(constraint._matcher, OUTSIDE, 100) is None
    assert len(ending.find(constraint._matcher, OUTSIDE, 1_000)) > 400
