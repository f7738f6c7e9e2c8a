"""The form of an answer's text: many spellings of one constraint, on every endpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from engine.errors import InvalidConstraintError
from service.grammars.json_schema import ANY_OBJECT
from service.grammars.wanted import TextForm, TextFormKind
from tests.service.fakes import (
    MODEL,
    FakeEngine,
    gap_infilling,
    gap_tokenizer,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": MODEL, "prompt": "hi"},
    "/v1/fim/completions": {"model": MODEL, "prompt": "a", "suffix": "b"},
}
EVERY = pytest.mark.parametrize("path", BODIES)


def grammar_of(kind: TextFormKind, **fields: Any) -> str:
    return TextForm(kind, "x", **fields).grammar()


BY_SCHEMA = grammar_of(TextFormKind.JSON_SCHEMA, schema=SCHEMA)
BY_OBJECT = grammar_of(TextFormKind.JSON_SCHEMA, schema=ANY_OBJECT)
BY_REGEX = grammar_of(TextFormKind.REGEX, texts=["[ab]+"])
BY_CHOICE = grammar_of(TextFormKind.CHOICE, texts=["yes", "no"])
GBNF = 'root ::= "a" | "b"'
BY_GRAMMAR = grammar_of(TextFormKind.GRAMMAR, texts=[GBNF])


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(says(gap_tokenizer(), "yes"))


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[httpx.Client]:
    tokenizer = gap_tokenizer()
    with (
        running_server(engine, tokenizer, infilling=gap_infilling(tokenizer)) as server,
        httpx.Client(base_url=server.url, timeout=20) as made,
    ):
        yield made


def ask(client: httpx.Client, path: str, **fields: object) -> httpx.Response:
    return client.post(path, json={**BODIES[path], **fields})


def named(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}


SPELLINGS: list[tuple[dict[str, object], str]] = [
    ({"response_format": named(SCHEMA)}, BY_SCHEMA),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, BY_SCHEMA),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, BY_SCHEMA),
    ({"response_format": {"type": "json_object"}}, BY_OBJECT),
    ({"json_schema": SCHEMA}, BY_SCHEMA),
    ({"json_schema": json.dumps(SCHEMA)}, BY_SCHEMA),
    ({"guided_json": SCHEMA}, BY_SCHEMA),
    ({"guided_json": json.dumps(SCHEMA)}, BY_SCHEMA),
    ({"structured_outputs": {"json": SCHEMA}}, BY_SCHEMA),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, BY_SCHEMA),
    ({"structured_outputs": {"json_object": True}}, BY_OBJECT),
    ({"regex": "[ab]+"}, BY_REGEX),
    ({"guided_regex": "[ab]+"}, BY_REGEX),
    ({"structured_outputs": {"regex": "[ab]+"}}, BY_REGEX),
    ({"guided_choice": ["yes", "no"]}, BY_CHOICE),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, BY_CHOICE),
    ({"grammar": GBNF}, BY_GRAMMAR),
    ({"guided_grammar": GBNF}, BY_GRAMMAR),
    ({"structured_outputs": {"grammar": GBNF}}, BY_GRAMMAR),
]


@EVERY
@pytest.mark.parametrize(("fields", "grammar"), SPELLINGS)
def test_each_spelling_reaches_the_engine_as_the_same_grammar(
    client, engine, path, fields, grammar
):
    response = ask(client, path, **fields)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    assert engine.grammars[-1] == grammar


@EVERY
def test_every_choice_of_a_request_follows_it(client, engine, path):
    ask(client, path, regex="[ab]+", n=3)
    assert engine.grammars[-3:] == [BY_REGEX] * 3


@EVERY
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "grammar": "", "regex": "", "guided_choice": []},
        {"structured_outputs": {"json": None, "regex": "", "choice": [], "json_object": False}},
        {"structured_outputs": {}, "json_schema": {}, "guided_json": ""},
    ],
)
def test_silence_asks_for_no_form(client, engine, path, fields):
    response = ask(client, path, **fields)
    assert response.status_code == 200, response.text
    assert engine.grammars[-1] is None


@EVERY
@pytest.mark.parametrize(
    ("fields", "ignored", "grammar"),
    [
        ({"type": "text", "schema": SCHEMA}, ["schema"], None),
        ({"type": "text", "value": SCHEMA, "schema": {}}, ["value"], None),
        ({**named(SCHEMA), "type": "text"}, ["json_schema"], None),
        ({**named(SCHEMA), "schema": SCHEMA, "value": SCHEMA}, ["schema", "value"], BY_SCHEMA),
        ({**named(SCHEMA), "type": "json_object"}, ["json_schema"], BY_OBJECT),
        ({"type": "json_object", "schema": SCHEMA, "value": SCHEMA}, [], BY_SCHEMA),
        ({"type": "json_object", "schema": {}, "value": SCHEMA}, [], BY_SCHEMA),
    ],
)
def test_what_the_type_of_a_format_takes_no_heed_of_is_named(
    client, engine, path, fields, ignored, grammar
):
    response = ask(client, path, response_format=fields)
    assert response.status_code == 200, response.text
    said = response.headers.get("x-ignored-params", "")
    assert said == ", ".join(f"response_format.{name}" for name in ignored)
    assert engine.grammars[-1] == grammar


def test_editors_ask_in_their_own_words(client, engine):
    body = {"input_prefix": "a", "input_suffix": "b"}
    for fields, grammar in (
        ({"json_schema": SCHEMA}, BY_SCHEMA),
        ({"grammar": GBNF}, BY_GRAMMAR),
        ({"grammar": "", "json_schema": {}}, None),
    ):
        assert client.post("/infill", json={**body, **fields}).status_code == 200
        assert engine.grammars[-1] == grammar
    both = client.post("/infill", json={**body, "json_schema": SCHEMA, "grammar": GBNF})
    assert both.status_code == 400


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ({"type": "json", "value": SCHEMA}, BY_SCHEMA),
        ({"type": "json", "value": json.dumps(SCHEMA)}, BY_SCHEMA),
        ({"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}, BY_SCHEMA),
        ({"type": "json_schema", "value": SCHEMA}, BY_SCHEMA),
        ({"type": "regex", "value": "[ab]+"}, BY_REGEX),
        (None, None),
    ],
)
def test_text_generation_clients_ask_in_their_own_words(client, engine, grammar, expected):
    body = {"inputs": "hi", "parameters": {"grammar": grammar}}
    assert client.post("/generate", json=body).status_code == 200
    assert engine.grammars[-1] == expected


REFUSED: list[tuple[dict[str, object], str]] = [
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA, "value": {"type": "array"}}},
        "response_format",
    ),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format"),
    ({"response_format": named("{")}, "response_format"),
    ({"response_format": named([1])}, "response_format"),
    ({"response_format": named({"type": "dog"})}, "response_format"),
    ({"response_format": named({"not": {}})}, "response_format"),
    ({"response_format": 1}, "response_format"),
    ({"json_schema": "[" * 100_000}, "json_schema"),
    ({"json_schema": '{"a": 1, "a": 2}'}, "json_schema"),
    ({"json_schema": "x" * 200_000}, "json_schema"),
    ({"guided_json": 1}, "guided_json"),
    ({"guided_choice": "yes"}, "guided_choice"),
    ({"guided_choice": [1]}, "guided_choice"),
    ({"guided_choice": ["yes", ""]}, "guided_choice"),
    ({"guided_choice": ["x"] * 10_000}, "guided_choice"),
    ({"regex": "(a"}, "regex"),
    ({"regex": ["a"]}, "regex"),
    ({"grammar": "what is this"}, "grammar"),
    ({"structured_outputs": "json"}, "structured_outputs"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json": {"enum": [0] * 6_000}}}, "structured_outputs.json"),
    ({"json_schema": '{"type": "integer", "minimum": 1e999}'}, "json_schema"),
]


@EVERY
@pytest.mark.parametrize(("fields", "name"), REFUSED)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_cannot_be_followed_is_refused_by_its_field_before_any_stream(
    client, path, fields, name, is_stream
):
    response = ask(client, path, **fields, stream=is_stream)
    assert response.status_code == 400
    error = response.json()["error"]
    assert name in error["message"]
    assert (error["param"] or "").startswith(name)
    assert len(error["message"]) < 700


@EVERY
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"regex": "a", "response_format": {"type": "json_object"}}, "response_format and regex"),
        ({"regex": "a", "guided_regex": "a"}, "guided_regex and regex"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.regex and structured_outputs.choice",
        ),
    ],
)
def test_two_forms_are_refused_by_both_names(client, path, fields, names):
    response = ask(client, path, **fields)
    assert response.status_code == 400
    assert f"{names} each ask for a form" in response.json()["error"]["message"]


@EVERY
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_the_engine_cannot_read_is_refused_before_any_stream(client, engine, path, is_stream):
    engine.refused_grammar = InvalidConstraintError("it is too large")
    try:
        response = ask(client, path, regex="[ab]+", stream=is_stream)
    finally:
        engine.refused_grammar = None
    assert response.status_code == 400
    assert "it is too large" in response.json()["error"]["message"]
    assert not engine.running


def test_unknown_keys_within_a_form_are_named(client):
    format_ = {"type": "json_object", "x": 1}
    response = ask(client, CHAT, response_format=format_)
    assert response.headers["x-ignored-params"] == "response_format.x"
    outputs = {"regex": "a", "disable_any_whitespace": True}
    response = ask(client, CHAT, structured_outputs=outputs)
    assert response.headers["x-ignored-params"] == "structured_outputs.disable_any_whitespace"


def test_what_a_schema_says_is_not_read_as_fields(client):
    schema = {"type": "object", "title": "T", "x-vendor": 1, "properties": {"strict": {}}}
    response = ask(client, CHAT, response_format=named(schema))
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
