"""Answers of a wanted form, over HTTP, from real engines: with drafts, penalties and mates beside.

The tiny model's weights are random, so it never ends a text by itself: what ends its answers, and
makes them what was asked for, is the grammar alone.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest

from benchmarks.structured_schemas import Case, cases
from tests import models
from tests.service.real_server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loaders.demo import DemoRepositories
    from tests.service.real_server import RealServer

pytestmark = pytest.mark.slow

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Describe a person as JSON."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
NUM_DEMO_SCHEMAS = 20  # of the two hundred; benchmarks/structured_output.py asks all


@pytest.fixture(scope="module", params=[0, 4], ids=["without drafts", "with drafts"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("structured")
    checkpoint = models.write_gptq_checkpoint(
        folder,
        models.tiny_llama(),
        bits=4,
        group_size=128,
        desc_act=False,
        tokenizer=models.tiny_tokenizer(),
    )
    with serving(
        folder / "server",
        str(checkpoint),
        max_model_len=512,
        kv_cache_size=2**24,
        cache_dir=str(folder / "cache"),
        served_model_name="tiny",
        num_speculative_tokens=request.param,
        in_process=True,
    ) as running:
        yield running


def ask(server: RealServer, path: str = CHAT, **fields: Any) -> list[dict[str, Any]]:
    asked = {"prompt": "a: "} if path == COMPLETIONS else {"messages": USER}
    response = server.client.post(path, json={**asked, "max_tokens": 120, **fields})
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_answers_follow_the_schema_also_of_several_choices(server, path):
    validator = jsonschema_rs.validator_for(PERSON)
    for choice in ask(server, path, json_schema=PERSON, n=4, temperature=1, seed=1):
        validator.validate(json.loads(text_of(choice)))


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"regex": "[a-c]{3,5}"}, "[a-c]{3,5}"),
        ({"guided_choice": ["yes", 'no "never"\n']}, '(yes|no "never"\n)'),
        ({"grammar": 'root ::= "x" [0-9] [0-9] "!"'}, "x[0-9][0-9]!"),
        ({"grammar": 'start: "é" /[日本]/'}, "é[日本]"),
    ],
)
def test_other_forms_are_followed_to_their_end(server, fields, pattern):
    for temperature in (0, 1):
        (choice,) = ask(server, temperature=temperature, **fields)
        assert re.fullmatch(pattern, text_of(choice), flags=re.DOTALL)
        assert choice["finish_reason"] == "stop"


def test_streamed_answers_are_those_that_come_whole(server):
    fields = {"messages": USER, "max_tokens": 120, "temperature": 0, "json_schema": PERSON}
    (whole,) = ask(server, **fields)
    chunks = server.openai.chat.completions.create(
        model="tiny",
        messages=USER,
        max_tokens=120,
        temperature=0,
        stream=True,
        extra_body={"json_schema": PERSON},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == text_of(whole)
    jsonschema_rs.validator_for(PERSON).validate(json.loads(text))


def test_answer_that_its_tokens_do_not_suffice_for_is_ended_and_says_so(server):
    endless = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    (choice,) = ask(server, json_schema=endless, max_tokens=40, temperature=0)
    assert choice["finish_reason"] == "length"
    assert isinstance(json.loads(text_of(choice)), list)


FIELDS: dict[str, Any] = {
    "presence_penalty": 2,
    "frequency_penalty": -2,
    "repetition_penalty": 1.8,
    "logit_bias": {"60": 100, "61": -100},
    "bad_words": ["a", "{"],
    "min_tokens": 8,
    "ignore_eos": True,
    "stop": ["e"],
    "stop_token_ids": [60],
    "logprobs": True,
    "temperature": 1.5,
    "top_k": 3,
    "min_p": 0.2,
    "typical_p": 0.5,
    "allowed_token_ids": [*range(4, 300)],
    "n": 3,
    "prompt_logprobs": 2,
}


BANS = {"logit_bias", "bad_words", "allowed_token_ids"}  # may take what the grammar demands


@pytest.mark.parametrize("names", list(itertools.combinations(FIELDS, 2)), ids="+".join)
def test_no_pair_of_fields_beside_a_grammar_hangs_or_fails_the_server(server, names):
    body = {"messages": USER, "max_tokens": 40, "seed": 1, **{name: FIELDS[name] for name in names}}
    response = server.client.post(CHAT, json={**body, "json_schema": PERSON}, timeout=60)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:  # what is banned and what the grammar demands
        assert "no token was left to pick" in response.json()["error"]["message"]
        assert BANS & {*names}


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["sky", "sea"]}}},
    },
}
ENDING_FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "pattern": ({"regex": "ab|cd"}, "ab|cd"),
    "pattern that may end before": ({"regex": "abc?d?"}, "abc?d?"),
    "choice": ({"guided_choice": ["yes", "no"]}, "yes|no"),
    "choice of one": ({"guided_choice": ["a longer text, which is all drafted"]}, "a longer .*"),
    "const": ({"json_schema": {"const": "x"}}, '"x"'),
    "enum": ({"json_schema": {"enum": ["x", "y", 12]}}, '"x"|"y"|12'),
    "object": (
        {"json_schema": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
        '{"a": 1}',
    ),
    "grammar": ({"grammar": 'root ::= "x" [0-9] "!"'}, "x[0-9]!"),
}
KEPT_FROM_ENDING = {
    "ignore_eos": True,
    "min_tokens": 60,
    "frequency_penalty": 2,
    "temperature": 1,
    "logprobs": True,
}


@pytest.mark.parametrize("form", ENDING_FORMS)
def test_a_form_that_is_complete_ends_the_answer_whatever_is_asked_beside_it(server, form):
    asked, pattern = ENDING_FORMS[form]
    for count in range(len(KEPT_FROM_ENDING) + 1):
        for names in itertools.combinations(KEPT_FROM_ENDING, count):
            fields = {name: KEPT_FROM_ENDING[name] for name in names}
            (choice,) = ask(server, seed=1, **asked, **fields)
            assert re.fullmatch(pattern, text_of(choice), flags=re.DOTALL), names
            assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("least", [2, 3, 60])
def test_a_form_ends_the_answer_before_and_behind_min_tokens(server, least):
    for asked, pattern in ENDING_FORMS.values():
        (choice,) = ask(server, min_tokens=least, temperature=0, **asked)
        assert re.fullmatch(pattern, text_of(choice), flags=re.DOTALL)
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 100}], ids=str)
def test_calls_that_are_required_end_the_answer_too(server, fields):
    (choice,) = ask(
        server, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **fields
    )
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) in ({}, {"at": "sky"}, {"at": "sea"})


BOMBS: list[dict[str, Any]] = [
    {"regex": "(" * 8_000 + ")" * 8_000},
    {"regex": "((((((a{99}){99}){99}){99}){99}){99})"},
    {"regex": "(.*a){200}"},
    {"regex": "(a?){5000}a{5000}"},
    {"regex": "(x|x?)" * 2_000},
    {"json_schema": {"enum": [str(i) for i in range(100_000)]}},
    {"json_schema": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
    {"json_schema": {"type": "array", "items": {"$ref": "#"}, "minItems": 3}},
    {"json_schema": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}},
    {"json_schema": {"type": "string", "minLength": 10**9}},
    {"json_schema": {"type": "array", "minItems": 10**9}},
    {"json_schema": {"properties": {f"p{i}": {"$ref": "#"} for i in range(1_000)}}},
    {"json_schema": {"const": "x" * 1_000_000}},
    {"grammar": "root ::= root root | root root root | root"},
    {"grammar": 'root ::= "a" root root | "b"'},
    {"grammar": "start: " + "(" * 5_000 + '"a"' + ")" * 5_000},
    {"grammar": "\n".join(f'r{i}: r{i + 1} r{i + 1} | "a"' for i in range(500)) + "\nstart: r0"},
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: json.dumps(bomb)[:60])
def test_bombs_cost_their_sender_an_answer_and_nobody_else(server, bomb):
    begun = time.monotonic()
    response = server.client.post(CHAT, json={"messages": USER, "max_tokens": 16, **bomb})
    assert response.status_code in (200, 400), response.text
    assert time.monotonic() - begun < 20  # on a busy machine; tests of grammars count their work
    (mate,) = ask(server, regex="[ab]{4}", temperature=0)
    assert re.fullmatch("[ab]{4}", text_of(mate))


def test_bombs_do_not_stop_those_who_run(server):
    want = text_of(ask(server, max_tokens=100, temperature=0, ignore_eos=True)[0])
    with ThreadPoolExecutor(8) as pool:
        mates = [
            pool.submit(ask, server, max_tokens=100, temperature=0, ignore_eos=True)
            for _ in range(2)
        ]
        for bomb in BOMBS:
            body = {"messages": USER, "max_tokens": 4, **bomb}
            pool.submit(server.client.post, CHAT, json=body, timeout=60)
        assert {text_of(mate.result()[0]) for mate in mates} == {want}


@pytest.fixture(scope="module")
def demo_server(
    demo: DemoRepositories, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("structured-demo")
    with serving(folder, demo.default_spec, cache_dir=str(demo.cache_dir), num_threads=2) as server:
        yield server


def test_demo_answers_in_the_form_of_each_schema(demo_server):
    """Every tenth of the two hundred; they become nastier, so all kinds are among them."""

    def look(case: Case) -> str | None:
        response = demo_server.client.post(
            CHAT,
            json={
                "messages": [{"role": "user", "content": case.question}],
                "max_tokens": 200,
                "temperature": 0,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": case.schema},
                },
            },
            timeout=120,
        )
        if case.is_refused:
            is_right = response.status_code == 400
            return None if is_right else f"{case.name}: {response.text}"
        text = response.json()["choices"][0]["message"]["content"]
        assert not re.search(r"\s{40}", text), text
        try:
            validator = jsonschema_rs.validator_for(case.schema, validate_formats=True)
            validator.validate(json.loads(text))
        except ValueError as error:
            return f"{case.name}: {text} ({error})"
        return None

    asked = list(cases())[9 :: 200 // NUM_DEMO_SCHEMAS]
    assert len(asked) == NUM_DEMO_SCHEMAS
    with ThreadPoolExecutor(4) as pool:
        wrong = [found for found in pool.map(look, asked) if found]
    assert len(wrong) <= NUM_DEMO_SCHEMAS // 10, wrong
