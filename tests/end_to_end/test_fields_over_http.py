"""What a request's fields do to a real engine's answers, over HTTP.

A random two-layer model: its words mean nothing, but its numbers are a real model's. Answers are
compared with what the same engine tells without the field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests import models
from tests.service.real_server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.real_server import RealServer

pytestmark = pytest.mark.slow

PROMPT = "def reverse(text): return the weights of each model"
NUM_TOKENS = 12
MAX_MODEL_LEN = 512
USER = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("fields")
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
        max_model_len=MAX_MODEL_LEN,
        kv_cache_size=2**24,
        cache_dir=str(folder / "cache"),
        served_model_name="tiny",
        aliases=["tiny-alias"],
        allow_priority=True,
        in_process=True,
    ) as running:
        yield running


def ask(server: RealServer, path: str = "/v1/completions", **fields: Any) -> dict[str, Any]:
    asked = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": USER}
    body = {**asked, "max_tokens": NUM_TOKENS, "temperature": 0, **fields}
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ids(server: RealServer, **fields: Any) -> list[int]:
    """The ids of a greedy answer."""
    answer = ask(server, return_token_ids=True, **fields)
    found: list[int] = answer["choices"][0]["token_ids"]
    return found


def test_logprobs_are_of_what_came_and_the_likeliest_came(server):
    told = ask(server, logprobs=3)["choices"][0]["logprobs"]
    assert len(told["tokens"]) == NUM_TOKENS
    for own, top in zip(told["token_logprobs"], told["top_logprobs"], strict=True):
        assert own == max(top.values()) < 0
        assert list(top.values()) == sorted(top.values(), reverse=True)
    chat = ask(server, "/v1/chat/completions", logprobs=True, top_logprobs=2)
    for token in chat["choices"][0]["logprobs"]["content"]:
        first, second = token["top_logprobs"]
        assert token["logprob"] == first["logprob"] >= second["logprob"]
        assert (token["token"], token["bytes"]) == (first["token"], first["bytes"])


def test_a_bias_an_allowed_list_and_a_ban_decide_what_comes(server):
    free = ids(server)
    assert ids(server, logit_bias={"300": 100}) == [300] * NUM_TOKENS
    assert set(ids(server, allowed_token_ids=[300, 301])) <= {300, 301}
    assert free[0] not in ids(server, logit_bias={str(free[0]): -100})


def test_a_bad_word_never_comes(server):
    text = ask(server, max_tokens=40)["choices"][0]["text"]
    words = [word for word in text.split() if word.isascii() and word.isalpha()]
    banned = ask(server, max_tokens=40, bad_words=words)["choices"][0]["text"]
    assert words
    assert not set(words) & set(banned.split())


def test_bans_on_all_that_is_allowed_end_in_words_and_hurt_nobody(server):
    before = ids(server)
    assert ids(server, allowed_token_ids=[300], logit_bias={"300": -100}) == [300] * NUM_TOKENS
    (word,) = [ask(server, allowed_token_ids=[300], max_tokens=1)["choices"][0]["text"]]
    body = {"prompt": PROMPT, "allowed_token_ids": [300], "bad_words": [word]}
    for stream in (False, True):
        response = server.client.post("/v1/completions", json={**body, "stream": stream})
        assert response.status_code == (200 if stream else 400)
        assert '"code":"nothing_to_pick"' in response.text
    assert ids(server) == before


def test_penalties_make_other_tokens_come(server):
    allowed = {"allowed_token_ids": [300, 301], "logit_bias": {"300": 1}, "max_tokens": 30}
    counts = [
        len(set(ids(server, **allowed, **penalty)))
        for penalty in ({"frequency_penalty": 2}, {"repetition_penalty": 50})
    ]
    assert counts[0] == 2
    biased = {**allowed, "logit_bias": {"300": 20}}
    assert set(ids(server, **biased)) == {300}
    assert set(ids(server, **biased, frequency_penalty=2)) == {300, 301}


def test_no_end_comes_before_the_least_tokens_and_ends_can_be_ignored(server):
    end = models.tiny_tokenizer().eos_token_id
    wants_end = {"logit_bias": {str(end): 100}}
    assert ids(server, **wants_end) == [end]
    assert len(ids(server, **wants_end, min_tokens=5)) == 6
    assert ids(server, **wants_end, ignore_eos=True) == [end] * NUM_TOKENS
    stops = {"logit_bias": {"300": 100}, "stop_token_ids": [300]}
    answer = ask(server, **stops)["choices"][0]
    assert (answer["text"], answer["stop_reason"]) == ("", 300)


def test_a_prompts_logprobs_are_the_same_echoed(server):
    asked = ask(server, prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    own = [next(iter(found.values()))["logprob"] for found in asked[1:]]
    assert asked[0] is None
    assert all(logprob < 0 for logprob in own)
    for num_tokens in (0, 2):
        echoed = ask(server, echo=True, logprobs=0, max_tokens=num_tokens)
        told = echoed["choices"][0]["logprobs"]
        assert len(told["tokens"]) == len(asked) + num_tokens
        assert told["token_logprobs"][0] is None
        assert told["token_logprobs"][1 : len(asked)] == pytest.approx(own, abs=1e-4)
        assert echoed["choices"][0]["text"].startswith(PROMPT)
        assert echoed["usage"]["completion_tokens"] == num_tokens


def test_best_of_picks_the_likeliest_of_what_n_would_return(server):
    sampled = {"temperature": 1.0, "seed": 3, "logprobs": 0}
    choices = ask(server, n=4, **sampled)["choices"]

    def mean(choice: dict[str, Any]) -> float:
        logprobs = choice["logprobs"]["token_logprobs"]
        return sum(logprobs) / len(logprobs)

    assert all(len(one["logprobs"]["tokens"]) == NUM_TOKENS for one in choices)
    best = max(choices, key=mean)
    found = ask(server, best_of=4, **sampled)
    assert [choice["text"] for choice in found["choices"]] == [best["text"]]
    assert found["usage"]["completion_tokens"] == 4 * NUM_TOKENS


def test_a_seed_makes_sampling_repeatable(server):
    sampled = {"temperature": 1.0, "seed": 7}
    assert ids(server, **sampled) == ids(server, **sampled) != ids(server, temperature=1.0, seed=8)


def test_a_prompt_that_is_known_is_told_as_cached_to_requests_of_the_same_salt(server):
    prompt = "a prompt of its own " * 12

    def num_cached(**fields: object) -> int:
        usage = ask(server, prompt=prompt, **fields)["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert num_cached(cache_salt="ours") == 0
    assert num_cached(cache_salt="ours") > 0
    assert num_cached(cache_salt="theirs") == 0
    assert num_cached() == 0


def test_a_request_that_takes_too_long_fails_with_408(server):
    body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "timeout": 0.01}
    response = server.client.post("/v1/completions", json=body)
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "deadline_exceeded"
    streamed = server.client.post("/v1/completions", json={**body, "stream": True}).text
    assert '"code":"deadline_exceeded"' in streamed
    assert streamed.endswith("data: [DONE]\n\n")


def test_priority_is_taken_where_the_setting_lets_it(server):
    assert ids(server, priority=-5) == ids(server)


def test_answers_under_an_alias_carry_the_served_name(server):
    assert ask(server, model="tiny-alias")["model"] == "tiny"
    assert ask(server, model="")["model"] == "tiny"
    assert server.client.get("/v1/models/tiny-alias").json()["id"] == "tiny"
