"""POST /v1/fim/completions: Mistral's fields, answered as the chat answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from engine.outputs import TokenLogprobs
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

TEXT = "return x"
CONTINUE = {  # what Continue sends
    "model": MODEL,
    "prompt": "def f(x):\n    ",
    "suffix": "\n",
    "max_tokens": 64,
    "temperature": 0.01,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "stop": ["\n\n"],
    "stream": True,
}


@pytest.fixture(scope="module")
def tokenizer():
    return gap_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer) -> FakeEngine:
    return FakeEngine(says(tokenizer, TEXT))


@pytest.fixture(scope="module")
def http(engine, tokenizer) -> Iterator[httpx.Client]:
    with (
        running_server(engine, tokenizer, infilling=gap_infilling(tokenizer)) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        yield client


def fill(http, **fields: object) -> dict[str, Any]:
    response = http.post("/v1/fim/completions", json={"prompt": "a", "suffix": "b", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_middle_is_the_assistant_s_turn(http, engine, tokenizer):
    body = fill(http, prompt="def f(x):\n    ", suffix="\n")
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == TEXT
    assert body["choices"][0]["finish_reason"] == "stop"
    ids = engine.submitted[-1][0]
    assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == (
        "<s><fim_prefix>def f(x):\n    <fim_suffix>\n<fim_middle>"
    )


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/fim/completions"])
def test_continue_s_body_is_streamed_as_chat_chunks(http, path):
    response = http.post(path, json=CONTINUE, headers={"x-api-key": "k"})
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == TEXT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "x-ignored-params" not in response.headers


def test_suffix_may_be_silent(http, engine, tokenizer):
    http.post("/v1/fim/completions", json={"prompt": "a"})
    ids = engine.submitted[-1][0]
    assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == (
        "<s><fim_prefix>a<fim_suffix><fim_middle>"
    )


def test_fields_reach_the_engine(http, engine):
    fill(http, random_seed=7, min_tokens=2, max_tokens=9, temperature=0.5, top_p=0.25, n=2)
    params = engine.submitted[-2][1]
    assert (params.seed, params.min_tokens, params.max_tokens) == (7, 2, 9)
    assert (params.temperature, params.top_p) == (0.5, 0.25)
    assert engine.submitted[-1][1].seed == 8


def test_seed_has_two_names_that_must_agree(http, engine):
    fill(http, seed=3)
    assert engine.submitted[-1][1].seed == 3
    body = {"prompt": "a", "seed": 3, "random_seed": 4}
    assert http.post("/v1/fim/completions", json=body).status_code == 400
    fill(http, seed=3, random_seed=-1)
    assert engine.submitted[-1][1].seed == 3


def test_silent_max_tokens_is_bounded(http, engine):
    fill(http)
    prompt, params = engine.submitted[-1]
    assert params.max_tokens == min(256, engine.max_model_len - len(prompt))


def test_request_can_bring_its_id(http):
    response = http.post("/v1/fim/completions", json={"prompt": "a", "request_id": "mine"})
    assert response.json()["id"] == "chatcmpl-mine"
    assert response.headers["x-request-id"] == "mine"


def test_stop_ends_it(http):
    choice = fill(http, stop="rn")["choices"][0]
    assert choice["message"]["content"] == "retu"
    assert choice["stop_reason"] == "rn"


def test_tokens_logprobs_are_told(http, engine):
    engine.logprobs = lambda token_id, params: TokenLogprobs(-0.5, ((token_id, -0.5),))
    told = fill(http, logprobs=True, top_logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert [token["token"] for token in told["content"]] == ["r"]


def test_what_has_no_room_is_cut_and_told(http, engine):
    body = {"prompt": "a" * 300, "suffix": "b" * 300, "max_tokens": 56}
    response = http.post("/v1/fim/completions", json=body)
    assert len(engine.submitted[-1][0]) == engine.max_model_len - 56
    assert response.headers["x-truncated-prompt"] == "prefix=153, suffix=251"
    assert response.json()["usage"]["prompt_tokens"] == 200


def test_prompt_can_be_bounded(http, engine):
    fill(http, prompt="a" * 100, truncate_prompt_tokens=50)
    assert len(engine.submitted[-1][0]) == 50
    fill(http, prompt="a" * 100, truncate_prompt_tokens=-1)
    assert len(engine.submitted[-1][0]) > 100


def test_answer_longer_than_the_context_is_refused(http):
    response = http.post("/v1/fim/completions", json={"prompt": "a", "max_tokens": 256})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] == "max_tokens"


def test_variant_that_cannot_says_why(tokenizer):
    with running_server(FakeEngine(says(tokenizer, "x")), tokenizer) as server:
        response = httpx.post(f"{server.url}/v1/fim/completions", json={"prompt": "a"}, timeout=20)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "infilling_not_supported"
