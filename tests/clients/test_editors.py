"""What editors' completion plug-ins send, by plain HTTP, to `tetrad serve` on a model that infills.

Bodies of llama.vim, llama.vscode and Continue, as their sources write them; the checks read an
answer as they do. The model is a random one with Qwen-Coder's special pieces: what it says means
nothing, that it is the same on each road does.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from tests.clients.coder import MODEL, coder_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.real_server import RealServer

KEY = "sk-editors"
MAX_MODEL_LEN = 2048

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder: Path = tmp_path_factory.mktemp("coder-server")
    (folder / "key").write_text(KEY + "\n")
    key_file = str(folder / "key")
    with coder_server(folder, api_key_file=key_file, max_model_len=MAX_MODEL_LEN) as server:
        yield server


@pytest.fixture
def http(server: RealServer) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield client


def post(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


# ── llama.vim and llama.vscode ──────────────────────────────────────────────────────────────────

TIMINGS = [
    f"timings/{phase}_{what}"
    for phase in ("prompt", "predicted")
    for what in ("n", "ms", "per_token_ms", "per_second")
]
PREFIX, MIDDLE, SUFFIX = "def add(a, b):\n", "    return ", "\n\nprint(add(1, 2))\n"


def extra(text: str) -> list[dict[str, Any]]:
    """A chunk of another file, as both plug-ins gather them; `time` is their own matter."""
    return [{"text": text, "time": [1234, 567890], "filename": "other.py"}]


def vim_body(**others: Any) -> dict[str, Any]:
    return {
        "id_slot": 0,
        "input_prefix": PREFIX,
        "input_suffix": SUFFIX,
        "input_extra": [],
        "prompt": MIDDLE,
        "n_predict": 16,
        "stop": [],
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.90,
        "stream": False,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 5000,
        "response_fields": ["content", *TIMINGS, "truncated", "tokens_cached"],
        **others,
    }


def vim_warm_up(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What llama.vim sends now and then, so that its chunks lie in the cache."""
    return {
        "id_slot": 0,
        "input_prefix": "",
        "input_suffix": "",
        "input_extra": chunks,
        "prompt": "",
        "n_predict": 0,
        "temperature": 0.0,
        "stream": False,
        "samplers": [],
        "cache_prompt": True,
        "t_max_prompt_ms": 1,
        "t_max_predict_ms": 1,
        "response_fields": [""],
    }


def test_llama_vim_gets_the_fields_it_asks_for_flattened(http: httpx.Client) -> None:
    body = vim_body(input_extra=extra("def sub(a, b):\n    return a - b\n"))
    answer = post(http, "/infill", body)
    assert answer.keys() == set(body["response_fields"])
    assert isinstance(answer["content"], str)
    assert answer["truncated"] is False
    assert type(answer["tokens_cached"]) is int
    assert all(answer[name] >= 0 for name in TIMINGS)
    assert answer["timings/prompt_n"] >= 1
    assert 1 <= answer["timings/predicted_n"] <= 16


def test_llama_vim_stops_where_it_says(http: httpx.Client) -> None:
    greedy = {"temperature": 0, "samplers": ["temperature"], "n_indent": 0}
    whole = post(http, "/infill", vim_body(**greedy))["content"]
    assert whole
    (end, *_) = re.findall("[!-~]{2}", whole[len(whole) // 3 :])
    cut = post(http, "/infill", vim_body(**greedy, stop=[end]))["content"]
    assert cut == whole[: whole.index(end)]


def test_warm_up_generates_nothing_and_fills_the_cache(http: httpx.Client) -> None:
    cold, warm = (
        extra("".join(f"{name} = {number} * x + {number}\n" for number in range(40)))
        for name in ("cold", "warm")
    )
    assert isinstance(post(http, "/infill", vim_warm_up(warm)), dict)
    worked = {
        name: post(http, "/infill", vim_body(input_extra=chunks))["timings/prompt_n"]
        for name, chunks in [("cold", cold), ("warm", warm)]
    }
    assert worked["warm"] < worked["cold"] / 2


def test_llama_vscode_gets_the_whole_answer(http: httpx.Client) -> None:
    body = {
        "input_prefix": PREFIX,
        "input_suffix": SUFFIX,
        "input_extra": extra("x = 1\n"),
        "prompt": MIDDLE,
        "n_predict": 8,
        "top_k": 40,
        "top_p": 0.99,
        "stream": False,
        "n_indent": 4,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 2500,
    }
    answer = post(http, "/infill", body)
    assert isinstance(answer["content"], str)
    assert answer["timings"]["prompt_n"] >= 1
    assert answer["timings"]["predicted_n"] <= 8
    assert answer["truncated"] is False
    warm_up = {**body, "input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 1}
    post(http, "/infill", {**warm_up, "t_max_prompt_ms": 1, "t_max_predict_ms": 1})


def test_context_that_does_not_fit_is_cut_and_said(http: httpx.Client) -> None:
    answer = post(http, "/infill", vim_body(input_prefix="x = 1  # one\n" * MAX_MODEL_LEN))
    assert answer["truncated"] is True
    assert answer["timings/predicted_n"] >= 1


def test_other_models_name_is_refused(http: httpx.Client) -> None:
    response = http.post("/infill", json=vim_body(model="unknown"))
    assert response.status_code == 404
    assert MODEL in response.json()["error"]["message"]


# ── Continue ────────────────────────────────────────────────────────────────────────────────────

CONTINUE_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json",
    "x-api-key": KEY,
    "authorization": f"Bearer {KEY}",
}
FIM_BODY = {
    "model": MODEL,
    "prompt": PREFIX + MIDDLE,
    "suffix": SUFFIX,
    "max_tokens": 12,
    "temperature": 0,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "stop": ["<|endoftext|>", "/src/", "#- coding: utf-8"],
}


@pytest.mark.parametrize("base", ["/v1/", "/"])
def test_continue_streams_a_filling_as_deltas(server: RealServer, base: str) -> None:
    body = {**FIM_BODY, "stream": True}
    with httpx.Client(base_url=server.url + base, headers=CONTINUE_HEADERS, timeout=60) as client:
        response = client.post("fim/completions", json=body)
        assert response.status_code == 200, response.text
        whole = client.post("fim/completions", json=FIM_BODY).json()
        by_suffix = client.post("completions", json=FIM_BODY).json()
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    # It reads each chunk so, without a look at what is there.
    text = "".join(
        json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]
    )
    assert text
    assert whole["choices"][0]["message"]["content"] == text
    assert by_suffix["choices"][0]["text"] == text


def test_both_roads_fill_the_same(http: httpx.Client) -> None:
    filled = post(http, "/v1/fim/completions", FIM_BODY)["choices"][0]["message"]["content"]
    body = vim_body(
        input_prefix=PREFIX + MIDDLE,
        prompt="",
        n_predict=12,
        temperature=0,
        n_indent=0,
        samplers=["temperature"],
    )
    assert post(http, "/infill", body)["content"] == filled


def test_continue_reads_the_context_length_from_the_first_model(server: RealServer) -> None:
    models = httpx.get(f"{server.url}/models", headers=CONTINUE_HEADERS).json()
    assert models["data"][0]["max_model_len"] == MAX_MODEL_LEN
