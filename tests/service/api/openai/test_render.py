"""What a request would run with, over HTTP and without running it."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from engine.sampling_params import SamplingParams
from service.api.openai import render
from service.api.openai.render import RenderedSampling
from service.serving.generation_request import plan_choices
from tests.service.fakes import MODEL, Defaults, FakeEngine, RunningServer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

    from service.serving.generation_request import PlannedChoice

TURNS = [{"role": "user", "content": "Hi"}]
SETTINGS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.1,
    "typical_p": 0.8,
    "presence_penalty": 0.25,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "min_tokens": 2,
    "max_tokens": 9,
    "n": 2,
    "seed": 3,
    "logit_bias": {"5": 1.5},
    "allowed_token_ids": [5, 6],
    "stop": ["x"],
    "stop_token_ids": [8],
    "ignore_eos": True,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "prompt_logprobs": 2,
}


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(says(tiny_tokenizer, "yes"))


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(engine, tiny_tokenizer, defaults=Defaults(temperature=0.2)) as running:
        yield running


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body)


def render_chat(server: RunningServer, **body: Any) -> dict[str, Any]:
    response = post(server, "/v1/chat/completions/render", messages=TURNS, **body)
    assert response.status_code == 200, response.text
    return response.json()


def test_ids_are_those_that_a_chat_runs_with(server, engine):
    rendered = render_chat(server, model=MODEL, seed=3)
    assert engine.submitted == []
    server.client().chat.completions.create(model=MODEL, messages=TURNS, seed=3)
    prompt, params = engine.submitted.pop()
    assert rendered["token_ids"] == prompt
    assert rendered["text"] == "<s>user: Hi\n"
    assert rendered["sampling_params"]["max_tokens"] == params.max_tokens
    assert (rendered["model"], rendered["sampling_params"]["temperature"]) == (MODEL, 0.2)
    assert rendered["request_id"].startswith("chatcmpl-")


def test_completions_are_a_list_of_all_prompts(server, engine):
    response = post(server, "/v1/completions/render", prompt=["a", "b"], max_tokens=0)
    first, second = response.json()
    server.client().completions.create(model=MODEL, prompt=["a", "b"], max_tokens=1)
    assert [first["token_ids"], second["token_ids"]] == [ids for ids, _ in engine.submitted]
    assert (first["text"], second["text"]) == ("<s>a", "<s>b")
    assert first["sampling_params"]["max_tokens"] == 0
    assert first["request_id"] == second["request_id"]
    engine.submitted.clear()


def test_settings_are_those_of_the_request(server):
    rendered = render_chat(server, **SETTINGS, logprobs=True, top_logprobs=4)
    sampling = rendered["sampling_params"]
    expected = SETTINGS | {"logprobs": 4, "bad_words_token_ids": []}
    assert {name: sampling[name] for name in expected} == expected
    assert sampling.keys() == expected.keys()


def test_no_setting_of_the_engine_is_forgotten():
    told = set(RenderedSampling.model_fields)
    own_names = {
        "bad_words": "bad_words_token_ids",
        # What ends an answer by itself is the variant's; nothing is banned by a request.
        "eos_token_ids": "stop_token_ids",
        "banned_token_ids": "bad_words_token_ids",
    }
    names = {own_names.get(one.name, one.name) for one in fields(SamplingParams)}
    assert names <= told


def test_request_id_is_the_requests_own(server):
    response = post(server, "/v1/chat/completions/render", messages=TURNS, request_id="mine")
    assert response.json()["request_id"] == "chatcmpl-mine"
    assert response.headers["x-request-id"] == "mine"


def test_bad_words_are_told_as_tokens(server, tiny_tokenizer):
    words = render_chat(server, bad_words=["a"])["sampling_params"]["bad_words_token_ids"]
    assert tiny_tokenizer("a", add_special_tokens=False).input_ids in words


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/render", {"messages": []}),
        ("/v1/chat/completions/render", {"messages": TURNS, "max_tokens": 5000}),
        ("/v1/completions/render", {"prompt": "a" * 1000}),
        ("/v1/completions/render", {"prompt": "a", "temperature": 3}),
    ],
)
def test_what_would_be_refused_is_refused(server, path, body):
    assert post(server, path, **body).status_code == 400
    assert post(server, path.removeprefix("/v1"), **body).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/render", {"messages": TURNS}),
        ("/v1/completions/render", {"prompt": "a"}),
    ],
)
def test_choices_are_planned_beside_the_event_loop(monkeypatch, server, path, body):
    """Bad words are encoded then, each in all its splittings."""
    planned_in_loop: list[bool] = []

    def plan(*args: Any) -> list[PlannedChoice]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            planned_in_loop.append(False)
        else:
            planned_in_loop.append(True)
        return plan_choices(*args)

    monkeypatch.setattr(render, "plan_choices", plan)
    assert post(server, path, bad_words=["x"], **body).status_code == 200
    assert planned_in_loop == [False]
