"""Every field of completions and chat changes the outcome as documented, is refused, or is named.

The tables below name the test of each; the first tests see to it that no field has none.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from engine.outputs import TokenLogprobs
from service.api.openai.chat import ChatRequest
from service.api.openai.completion_request import CompletionRequest
from service.api.openai.fields import StreamOptions
from service.text.bad_words import MAX_WORD_BYTES, MAX_WORDS
from tests.service.fakes import (
    END,
    LIMITS,
    MODEL,
    TURN_END,
    VOCAB_SIZE,
    Defaults,
    FakeEngine,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerFast

    from engine.sampling_params import SamplingParams

TEXT = "one two three"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": MODEL, "prompt": "hi", "max_tokens": 100},
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
}
MODELS = {COMPLETIONS: CompletionRequest, CHAT: ChatRequest}
BOTH = pytest.mark.parametrize("path", BODIES)

# What the engine is told: field → value, and what its parameters are then.
SAMPLING: dict[str, tuple[object, dict[str, object]]] = {
    "max_tokens": (7, {"max_tokens": 7}),
    "max_completion_tokens": (7, {"max_tokens": 7}),
    "n_predict": (7, {"max_tokens": 7}),
    "max_length": (7, {"max_tokens": 7}),
    "min_tokens": (3, {"min_tokens": 3}),
    "temperature": (0.25, {"temperature": 0.25}),
    "top_p": (0.5, {"top_p": 0.5}),
    "top_k": (5, {"top_k": 5}),
    "min_p": (0.1, {"min_p": 0.1}),
    "typical_p": (0.9, {"typical_p": 0.9}),
    "typical": (0.9, {"typical_p": 0.9}),
    "presence_penalty": (-1.5, {"presence_penalty": -1.5}),
    "frequency_penalty": (1.5, {"frequency_penalty": 1.5}),
    "repetition_penalty": (1.1, {"repetition_penalty": 1.1}),
    "repeat_penalty": (1.1, {"repetition_penalty": 1.1}),
    "rep_pen": (1.1, {"repetition_penalty": 1.1}),
    "logit_bias": ({"5": -100, "6": 2.5}, {"logit_bias": {5: -100.0, 6: 2.5}}),
    "allowed_token_ids": ([5, 6], {"allowed_token_ids": frozenset({5, 6})}),
    "seed": (11, {"seed": 11}),
    "stop_token_ids": ([9], {"stop_token_ids": frozenset({9})}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "ban_eos_token": (True, {"ignore_eos": True}),
    "logprobs": (None, {"logprobs": None}),  # differs by endpoint; see `OTHERS`
    "prompt_logprobs": (2, {"prompt_logprobs": 2}),
}
# What the engine is told of the request: field → value, and how its terms are then.
TERMS: dict[str, tuple[object, dict[str, object]]] = {
    "user": ("ann", {"caller": "ann"}),
    "cache_salt": ("pepper", {"cache_salt": "pepper"}),
    "timeout": (2.5, {"timeout_s": 2.5}),
    "priority": (-3, {"priority": -3}),
}
# Values that say no more than silence does.
NEUTRAL: dict[str, list[object]] = {
    "max_tokens": [-1, -2],
    "max_completion_tokens": [-1],
    "presence_penalty": [0, 0.0],
    "frequency_penalty": [0],
    "repetition_penalty": [1, 1.0],
    "typical_p": [1],
    "seed": [-1],
    "ignore_eos": [False],
    "logit_bias": [{}, [], ""],
    "allowed_token_ids": [[], {}, ""],
    "bad_words": [[], {}, "", [""]],
    "stop": ["", [], {}, [""], ["", ""]],
    "stop_token_ids": [[], {}, ""],
    "n": [1],
    "top_k": [0, -1],
    "min_tokens": [0],
    "stream": [False],
    "stream_options": [{}, [], "", {"include_usage": False}],
    "priority": [0],
    "user": [""],
    "response_format": [{"type": "text"}],
    "logprobs": [False],
    "store": [False],
    "metadata": [{}],
    "service_tier": ["auto", "default"],
    "verbosity": ["medium"],
    "request_id": [""],
    "model": ["", "dummy"],
}
CHAT_NEUTRAL: dict[str, list[object]] = {
    "tools": [[]],
    "functions": [[]],
    "parallel_tool_calls": [False],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "modalities": [["text"]],
    "top_logprobs": [0],
    "add_generation_prompt": [True],
    "continue_final_message": [False],
    "chat_template_kwargs": [{}, [], ""],
    "documents": [[], {}, ""],
    "reasoning_effort": [""],
}
# Taken, and named in x-ignored-params.
IGNORED: dict[str, object] = {
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
}
CHAT_IGNORED: dict[str, object] = {"parallel_tool_calls": True}  # where there are no tools
# Refused where they say anything.
REFUSED: dict[str, object] = {
    "chat_template": "{{ x }}",
    "prompt_embeds": "AAAA",
}
CHAT_REFUSED: dict[str, object] = {
    "modalities": ["audio"],
    "audio": {"voice": "x"},
}


def logprobs_by_id(token_id: int, params: SamplingParams) -> TokenLogprobs:
    """Of each token something of its own; the likeliest are those that follow it."""
    num_top = max(params.logprobs or 0, params.prompt_logprobs or 0)
    top = [((token_id + i) % VOCAB_SIZE, -0.5 - token_id / 1000 - i) for i in range(num_top)]
    return TokenLogprobs(-0.5 - token_id / 1000, tuple(top))


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(says(tiny_tokenizer, TEXT), logprobs=logprobs_by_id, num_cached_tokens=1)


@pytest.fixture(scope="module")
def client(engine: FakeEngine, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[httpx.Client]:
    limits = replace(LIMITS, may_set_priority=True)
    with (
        running_server(engine, tiny_tokenizer, limits=limits) as server,
        httpx.Client(base_url=server.url, timeout=20) as made,
    ):
        yield made


def ask(client: httpx.Client, path: str, **fields: object) -> httpx.Response:
    body = {name: value for name, value in {**BODIES[path], **fields}.items() if value != DROPPED}
    return client.post(path, json=body)


DROPPED = "(dropped)"


def answered(client: httpx.Client, path: str, **fields: object) -> dict[str, Any]:
    response = ask(client, path, **fields)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    body: dict[str, Any] = response.json()
    return body


def texts_of(answer: dict[str, Any]) -> list[str]:
    return [
        choice["text"] if "text" in choice else choice["message"]["content"]
        for choice in answer["choices"]
    ]


@BOTH
def test_names_that_are_not_known_are_told_at_any_depth(client, path):
    fields = {
        "stream": True,
        "stream_options": {"chunk_size": 3},
        "response_format": {"type": "text", "strict": True},
        "no_such_field": 1,
    }
    response = ask(client, path, **fields)
    assert response.status_code == 200
    assert set(response.headers["x-ignored-params"].split(", ")) == {
        "stream_options.chunk_size",
        "response_format.strict",
        "no_such_field",
    }


def events_of(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [event.removeprefix("data: ") for event in events]


# ── what the engine is told ─────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("name", sorted(SAMPLING.keys() - {"logprobs"}))
def test_field_reaches_the_engine(client, engine, path, name):
    value, expected = SAMPLING[name]
    length = {} if expected.keys() != {"max_tokens"} else {"max_tokens": DROPPED}
    before = answered_params(client, engine, path)
    params = answered_params(client, engine, path, **{**length, name: value})
    assert params == replace(before, **expected)
    assert params != before


def answered_params(client, engine, path, **fields: object) -> SamplingParams:
    answered(client, path, **fields)
    params: SamplingParams = engine.submitted[-1][1]
    return params


@BOTH
@pytest.mark.parametrize("name", TERMS)
def test_field_sets_the_terms_on_which_the_engine_works(client, engine, path, name):
    value, expected = TERMS[name]
    answered(client, path)
    before = engine.terms[-1]
    answered(client, path, **{name: value})
    assert engine.terms[-1] == replace(before, **expected)


@pytest.mark.parametrize("name", [*NEUTRAL, *CHAT_NEUTRAL])
def test_neutral_value_says_no_more_than_silence(client, engine, name):
    for path in BODIES:
        if name not in MODELS[path].model_fields:
            continue
        silence = {**({"max_tokens": DROPPED} if name.startswith("max_") else {})}
        before = answered_params(client, engine, path, **silence)
        terms = engine.terms[-1]
        for value in (None, *NEUTRAL.get(name, ()), *CHAT_NEUTRAL.get(name, ())):
            params = answered_params(client, engine, path, **{**silence, name: value})
            assert params == before
            assert engine.terms[-1] == terms


@BOTH
def test_null_is_silence_for_every_field(client, engine, path):
    silence = {"max_tokens": DROPPED, "model": DROPPED}
    before = answered_params(client, engine, path, **silence)
    required = {"prompt", "messages"}
    for name in MODELS[path].model_fields.keys() - required:
        assert answered_params(client, engine, path, **{**silence, name: None}) == before, name


@BOTH
def test_two_names_of_one_field_must_agree(client, engine, path):
    for name, others in MODELS[path].other_names.items():
        value, _ = SAMPLING.get(name, (["x"], None))
        for other in others:
            both = {"max_tokens": DROPPED, name: value, other: value}
            assert ask(client, path, **both).status_code == 200
            unequal = [False, 1, 0.5, ["y"]]
            for second in (one for one in unequal if one not in NEUTRAL.get(name, ())):
                response = ask(client, path, **{**both, other: second})
                assert response.status_code == 400
                assert response.json()["error"]["code"] == "invalid_value"


@BOTH
@pytest.mark.parametrize(
    ("neutral", "given", "told"),
    [
        ({"ignore_eos": False}, {"ban_eos_token": True}, {"ignore_eos": True}),
        ({"ban_eos_token": False}, {"ignore_eos": True}, {"ignore_eos": True}),
        ({"repetition_penalty": 1}, {"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"rep_pen": 1.0}, {"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"typical_p": 1}, {"typical": 0.9}, {"typical_p": 0.9}),
        ({"max_completion_tokens": -1}, {"n_predict": 7}, {"max_tokens": 7}),
        ({"stop": [""]}, {"stop_sequence": ["x"]}, {}),
    ],
)
def test_a_neutral_value_under_one_name_leaves_the_other_its_say(
    client, engine, path, neutral, given, told
):
    silence = {"max_tokens": DROPPED}
    before = answered_params(client, engine, path, **silence)
    params = answered_params(client, engine, path, **silence, **neutral, **given)
    assert params == replace(before, **told)


@BOTH
def test_an_empty_stop_string_leaves_the_others_theirs(client, path):
    assert texts_of(answered(client, path, stop=["", " three"])) == ["one two"]


@BOTH
@pytest.mark.parametrize(
    "token_id", ["00000000000999", "01", "9" * 5000, "2147483648", "-1", "+1", " 1", "1.0", "٣", ""]
)
def test_names_of_biases_are_token_ids_as_people_write_them(client, path, token_id):
    response = ask(client, path, logit_bias={token_id: 1})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "logit_bias")
    assert "token ids: integers of 0 to 2147483647, without leading zeros" in error["message"]
    assert ask(client, path, logit_bias={"0": 1, "10": 1}).status_code == 200


@BOTH
def test_two_bounds_that_differ_are_refused_by_name(client, path):
    response = ask(client, path, max_tokens=4, max_completion_tokens=8)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        "max_tokens and max_completion_tokens mean the same and differ; give one of them"
    )


@BOTH
def test_stop_strings_are_not_looked_for_in_the_least_tokens(client, tiny_tokenizer, path):
    num_tokens = len(tiny_tokenizer.encode("one two", add_special_tokens=False))
    for least, text in ((0, "one"), (num_tokens, TEXT)):
        for stream in (False, True):
            response = ask(client, path, stop=" two", min_tokens=least, stream=stream)
            assert text_of(response, stream) == text


@BOTH
def test_bad_words_reach_the_engine_as_ids(client, engine, tiny_tokenizer, path):
    params = answered_params(client, engine, path, bad_words=["two"])
    ids = tuple(tiny_tokenizer.encode("two", add_special_tokens=False))
    assert ids in params.bad_words or any(word == ids[-len(word) :] for word in params.bad_words)
    refused = ask(client, path, bad_words=["x"] * 2000)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "bad_words")
    for words in (["x"] * (MAX_WORDS + 1), ["x" * (MAX_WORD_BYTES + 1)]):
        assert "bad_words: " in ask(client, path, bad_words=words).json()["error"]["message"]
    assert ask(client, path, bad_words=["x" * MAX_WORD_BYTES] * MAX_WORDS).status_code == 200


@BOTH
def test_priority_is_refused_where_requests_may_not_set_it(tiny_tokenizer, path):
    with running_server(FakeEngine(says(tiny_tokenizer, "x")), tiny_tokenizer) as server:
        response = httpx.post(server.url + path, json={**BODIES[path], "priority": -1})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "priority")
        assert "allow_priority" in response.json()["error"]["message"]
        assert httpx.post(server.url + path, json={**BODIES[path], "priority": 0}).is_success


# ── how much, and how many ──────────────────────────────────────────────────────────────────────


@BOTH
def test_silent_max_tokens_takes_the_context_in_chat_and_sixteen_in_completions(
    client, engine, path
):
    for fields in ({"max_tokens": DROPPED}, {"max_tokens": -1}):
        params = answered_params(client, engine, path, **fields)
        left = engine.max_model_len - len(engine.submitted[-1][0])
        assert params.max_tokens == (left if path == CHAT else 16)


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_of_zero_only_reads_the_prompt(client, engine, path, stream):
    response = ask(client, path, max_tokens=0, stream=stream)
    text = response.text
    assert response.status_code == 200
    assert '"finish_reason":"length"' in text
    if not stream:
        assert texts_of(response.json()) == [""]
        assert response.json()["usage"]["completion_tokens"] == 0
    assert not engine.running


@BOTH
def test_n_makes_so_many_choices(client, engine, path):
    answer = answered(client, path, n=3, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert texts_of(answer) == [TEXT] * 3
    assert [params.seed for _, params in engine.submitted[-3:]] == [5, 6, 7]


@BOTH
@pytest.mark.parametrize(("most", "length"), [(4, 4), (1, 1), (-1, 156), (10**6, None)])
def test_truncate_prompt_tokens_keeps_the_end_and_what_every_text_begins_with(
    client, engine, path, most, length
):
    long = (
        {"prompt": "word " * 40}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": "word " * 40}]}
    )
    answered(client, path, **long)
    whole = engine.submitted[-1][0]
    assert len(whole) > 156 // 4
    answered(client, path, **long, truncate_prompt_tokens=most)
    kept = engine.submitted[-1][0]
    assert len(kept) == min(length or len(whole), len(whole))
    assert kept[1:] == whole[len(whole) - len(kept) + 1 :]
    if len(kept) > 1:
        assert kept[0] == whole[0] == 0


@BOTH
def test_truncation_that_leaves_nothing_is_refused(client, path):
    for fields in ({"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": -2}):
        assert ask(client, path, **fields).json()["error"]["code"] == "invalid_value"
    fields = {"truncate_prompt_tokens": -1, "max_tokens": 256}
    assert ask(client, path, **fields).json()["error"]["param"] == "truncate_prompt_tokens"


# ── where an answer ends ────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("name", ["stop", "stop_sequence"])
def test_stop_string_ends_the_text_and_is_told(client, path, name):
    answer = answered(client, path, **{name: [" nine", " three"]})
    assert texts_of(answer) == ["one two"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == " three"


@BOTH
def test_stop_token_is_told_and_the_variants_own_end_is_not(client, engine, tiny_tokenizer, path):
    ids = tiny_tokenizer.encode(TEXT, add_special_tokens=False)
    answer = answered(client, path, stop_token_ids=[ids[-2]])
    assert texts_of(answer) == [tiny_tokenizer.decode(ids[:-2])]
    assert answer["choices"][0]["stop_reason"] == ids[-2]
    own = answered(client, path)
    assert (own["choices"][0]["finish_reason"], own["choices"][0]["stop_reason"]) == ("stop", None)
    cut = answered(client, path, max_tokens=2)["choices"][0]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("length", None)


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_what_ended_an_answer_may_stay_in_its_text(client, tiny_tokenizer, path, stream):
    ids = tiny_tokenizer.encode(TEXT, add_special_tokens=False)
    kept = {"include_stop_str_in_output": True, "stream": stream}
    for ended, expected in (
        ({"stop": " th"}, "one two th"),
        ({"stop_token_ids": [ids[-2]]}, tiny_tokenizer.decode(ids[:-1])),
        ({"skip_special_tokens": False}, TEXT + "</s>"),
        ({}, TEXT),
    ):
        response = ask(client, path, **kept, **ended)
        assert text_of(response, stream) == expected


def text_of(response: httpx.Response, stream: bool) -> str:
    if not stream:
        return texts_of(response.json())[0]
    choices = [choice for event in events_of(response) for choice in json.loads(event)["choices"]]
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content", "")
        for choice in choices
    )


@BOTH
def test_special_pieces_show_where_they_are_asked_for(tiny_tokenizer, path):
    ids = tiny_tokenizer.encode("ab", add_special_tokens=False)
    engine = FakeEngine(lambda prompt, params: [*ids, TURN_END, *ids])
    with running_server(engine, tiny_tokenizer) as server, httpx.Client(base_url=server.url) as own:
        ignored = {"ignore_eos": True, "max_tokens": 2 * len(ids) + 1}
        assert texts_of(answered(own, path, **ignored)) == ["abab"]
        shown = texts_of(answered(own, path, **ignored, skip_special_tokens=False))
        assert shown == ["ab<|im_end|>ab"]
        assert texts_of(answered(own, path, skip_special_tokens=False)) == ["ab"]


# ── what is told ────────────────────────────────────────────────────────────────────────────────


def test_completions_tell_logprobs_of_each_token(client, engine, tiny_tokenizer):
    ids = tiny_tokenizer.encode(TEXT, add_special_tokens=False)
    told = answered(client, COMPLETIONS, logprobs=2)["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == TEXT
    assert told["token_logprobs"] == [-0.5 - token_id / 1000 for token_id in ids]
    assert told["text_offset"] == [
        len(tiny_tokenizer.decode(ids[:count])) for count in range(len(ids))
    ]
    assert [len(top) for top in told["top_logprobs"]] == [2] * len(ids)
    assert engine.submitted[-1][1].logprobs == 2
    assert answered(client, COMPLETIONS)["choices"][0]["logprobs"] is None


def test_chat_tells_logprobs_and_as_many_likeliest_tokens_as_asked(client, engine, tiny_tokenizer):
    ids = tiny_tokenizer.encode(TEXT, add_special_tokens=False)
    for num_top in (None, 0, 3):
        choice = answered(client, CHAT, logprobs=True, top_logprobs=num_top)["choices"][0]
        content = choice["logprobs"]["content"]
        assert "".join(token["token"] for token in content) == TEXT
        assert bytes(byte for token in content for byte in token["bytes"]).decode() == TEXT
        assert [token["logprob"] for token in content] == [-0.5 - i / 1000 for i in ids]
        assert [len(token["top_logprobs"]) for token in content] == [num_top or 0] * len(ids)
        assert engine.submitted[-1][1].logprobs == (num_top or 0)
    assert answered(client, CHAT)["choices"][0]["logprobs"] is None
    refused = ask(client, CHAT, top_logprobs=1)
    assert refused.status_code == 400
    assert "logprobs" in refused.json()["error"]["message"]


@BOTH
def test_prompt_logprobs_tell_each_token_of_the_prompt_but_the_first(client, engine, path):
    answer = answered(client, path, prompt_logprobs=2)
    prompt = engine.submitted[-1][0]
    told = (answer if path == CHAT else answer["choices"][0])["prompt_logprobs"]
    assert told[0] is None
    assert len(told) == len(prompt)
    for token_id, found in zip(prompt[1:], told[1:], strict=True):
        assert found[str(token_id)]["logprob"] == -0.5 - token_id / 1000
        assert found[str(token_id)]["rank"] == 1
        assert len(found) == 2
    refused = ask(client, path, prompt_logprobs=2, stream=True)
    assert refused.status_code == 400
    assert "prompt_logprobs" in refused.json()["error"]["message"]


@BOTH
def test_token_ids_are_returned_where_they_are_asked_for(client, engine, tiny_tokenizer, path):
    answer = answered(client, path, return_token_ids=True)
    prompt = engine.submitted[-1][0]
    ids = [*tiny_tokenizer.encode(TEXT, add_special_tokens=False), END]
    assert answer["choices"][0]["token_ids"] == ids
    assert (answer if path == CHAT else answer["choices"][0])["prompt_token_ids"] == prompt
    chunks = [
        json.loads(event)
        for event in events_of(ask(client, path, return_token_ids=True, stream=True))
    ]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [i for choice in choices for i in choice.get("token_ids", ())] == ids
    first = chunks[0] if path == CHAT else choices[0]
    assert first["prompt_token_ids"] == prompt
    plain = answered(client, path)
    assert "token_ids" not in plain["choices"][0]
    assert "prompt_token_ids" not in json.dumps(plain)


@BOTH
def test_stream_and_its_options_say_what_is_sent(client, path):
    whole = answered(client, path)["usage"]
    for options, last, others in (
        ({}, False, "absent"),
        ({"include_usage": True}, True, "null"),
        ({"include_usage": True, "continuous_usage_stats": True}, True, "counted"),
        ({"continuous_usage_stats": True}, False, "counted"),
    ):
        response = ask(client, path, stream=True, stream_options=options)
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = [json.loads(event) for event in events_of(response)]
        if last:
            assert chunks[-1]["choices"] == []
            assert chunks.pop()["usage"] == whole
        assert all(chunk["choices"] for chunk in chunks)
        if others == "absent":
            assert not any("usage" in chunk for chunk in chunks)
        elif others == "null":
            assert all(chunk["usage"] is None for chunk in chunks)
        else:
            counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert counts == sorted(counts)
            assert chunks[-1]["usage"] == whole


@BOTH
def test_stream_options_without_a_stream_and_unknown_ones(client, path):
    refused = ask(client, path, stream_options={"include_usage": True})
    assert refused.status_code == 400
    named = ask(client, path, stream=True, stream_options={"include_obfuscation": True})
    assert named.headers["x-ignored-params"] == "stream_options.include_obfuscation"


@BOTH
def test_usage_tells_cached_tokens(client, path):
    usage = answered(client, path, n=2)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


@BOTH
def test_request_id_is_in_the_answers_id_and_header(client, path):
    response = ask(client, path, request_id="run-7")
    assert response.json()["id"] == ("chatcmpl-run-7" if path == CHAT else "cmpl-run-7")
    assert response.headers["x-request-id"] == "run-7"
    streamed = ask(client, path, request_id="run-8", stream=True)
    assert streamed.headers["x-request-id"] == "run-8"
    assert '-run-8"' in events_of(streamed)[0]
    assert ask(client, path, request_id="a b").json()["error"]["param"] == "request_id"


@BOTH
def test_model_may_be_absent_and_another_is_not_found(client, path):
    for name in (DROPPED, None, "", "dummy", MODEL):
        assert answered(client, path, model=name)["model"] == MODEL
    assert ask(client, path, model="other").status_code == 404


# ── completions alone ───────────────────────────────────────────────────────────────────────────


def test_echo_begins_the_text_with_the_prompt(client):
    assert texts_of(answered(client, COMPLETIONS, echo=True)) == ["hi" + TEXT]


def test_best_of_returns_the_choices_of_highest_mean_logprob(tiny_tokenizer):
    """Seed i says i letters; the longer, the less likely its tokens are."""
    letters = tiny_tokenizer.encode("a b c d e f g h", add_special_tokens=False)
    engine = FakeEngine(lambda prompt, params: letters[: 8 - params.seed % 8])

    def by_length(token_id: int, params: SamplingParams) -> TokenLogprobs:
        return TokenLogprobs(-0.1 if token_id == END else -float((params.seed * 5) % 8), ())

    engine.logprobs = by_length
    with running_server(engine, tiny_tokenizer) as server, httpx.Client(base_url=server.url) as own:
        answer = answered(own, COMPLETIONS, prompt=["x", "y"], n=2, best_of=5, seed=0)
        submitted = engine.submitted[-10:]
    means = {seed: -((8 - seed) * ((seed * 5) % 8) + 0.1) / (9 - seed) for seed in range(5)}
    best = sorted(means, key=lambda seed: -means[seed])[:2]
    expected = [tiny_tokenizer.decode(letters[: 8 - seed]) for seed in best]
    assert texts_of(answer) == [*expected, *expected]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert len(submitted) == 10
    assert answer["usage"]["completion_tokens"] == 2 * sum(9 - seed for seed in range(5))


def test_best_of_is_refused_with_stream_and_below_n(client):
    for fields in ({"best_of": 2, "stream": True}, {"best_of": 1, "n": 2}, {"best_of": 0}):
        refused = ask(client, COMPLETIONS, **fields)
        assert refused.status_code == 400
        assert "best_of" in refused.json()["error"]["message"]
    assert ask(client, COMPLETIONS, best_of=2, n=2, stream=True).is_success


def test_prompt_gets_no_beginning_of_text_where_that_is_asked(client, engine):
    answered(client, COMPLETIONS)
    usual = engine.submitted[-1][0]
    answered(client, COMPLETIONS, add_special_tokens=False)
    assert [0, *engine.submitted[-1][0]] == usual


def test_prompt_forms(client, engine):
    for prompt in ("hi", ["hi"], [5, 6], [[5, 6]]):
        assert len(answered(client, COMPLETIONS, prompt=prompt)["choices"]) == 1
    assert len(answered(client, COMPLETIONS, prompt=["a", "b"])["choices"]) == 2


# ── without effect, and refused ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*IGNORED, *CHAT_IGNORED])
def test_field_without_effect_is_named(client, name):
    for path in BODIES if name in IGNORED else (CHAT,):
        response = ask(client, path, **{name: {**IGNORED, **CHAT_IGNORED}[name]})
        assert response.status_code == 200
        assert response.headers["x-ignored-params"] == name


@pytest.mark.parametrize("name", [*REFUSED, *CHAT_REFUSED])
def test_field_that_is_not_supported_is_refused(client, name):
    for path in BODIES if name in REFUSED else (CHAT,):
        if not (value := {**REFUSED, **CHAT_REFUSED}[name]):
            value = {"a": 1}
        response = ask(client, path, **{name: value})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
        assert error["param"] == name


# ── no field without a test ─────────────────────────────────────────────────────────────────────

OTHERS: dict[str, Callable[..., None]] = {
    "model": test_model_may_be_absent_and_another_is_not_found,
    "messages": test_n_makes_so_many_choices,  # and tests/service/api/test_messages.py
    "prompt": test_prompt_forms,
    "n": test_n_makes_so_many_choices,
    "truncate_prompt_tokens": (
        test_truncate_prompt_tokens_keeps_the_end_and_what_every_text_begins_with
    ),
    "bad_words": test_bad_words_reach_the_engine_as_ids,
    "stop": test_stop_string_ends_the_text_and_is_told,
    "stop_sequence": test_stop_string_ends_the_text_and_is_told,
    "include_stop_str_in_output": test_what_ended_an_answer_may_stay_in_its_text,
    "skip_special_tokens": test_special_pieces_show_where_they_are_asked_for,
    "logprobs": test_completions_tell_logprobs_of_each_token,
    "top_logprobs": test_chat_tells_logprobs_and_as_many_likeliest_tokens_as_asked,
    "return_token_ids": test_token_ids_are_returned_where_they_are_asked_for,
    "stream": test_stream_and_its_options_say_what_is_sent,
    "stream_options": test_stream_and_its_options_say_what_is_sent,
    "request_id": test_request_id_is_in_the_answers_id_and_header,
    "echo": test_echo_begins_the_text_with_the_prompt,
    "best_of": test_best_of_returns_the_choices_of_highest_mean_logprob,
    "add_special_tokens": test_prompt_gets_no_beginning_of_text_where_that_is_asked,
}
TESTED_ELSEWHERE = {
    "suffix",  # test_gaps.py
    *("tools", "tool_choice", "functions", "function_call"),  # test_tool_fields.py
    *("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "documents"),
    "reasoning_effort",  # these in tests/service/api/test_dialogues.py
    *("response_format", "structured_outputs", "json_schema", "grammar", "regex"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),  # test_text_forms.py
}


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_every_field_has_a_test(kind):
    tables = [SAMPLING, TERMS, IGNORED, CHAT_IGNORED, REFUSED, CHAT_REFUSED, OTHERS]
    tested = {name for table in tables for name in table} | TESTED_ELSEWHERE
    assert kind.model_fields.keys() <= tested


def test_no_table_names_a_field_that_there_is_not():
    fields = CompletionRequest.model_fields.keys() | ChatRequest.model_fields.keys()
    for table in (SAMPLING, TERMS, NEUTRAL, IGNORED, REFUSED, OTHERS):
        assert table.keys() <= fields
    for table in (CHAT_NEUTRAL, CHAT_IGNORED, CHAT_REFUSED):
        assert table.keys() <= ChatRequest.model_fields.keys()
    assert StreamOptions.model_fields.keys() == {"include_usage", "continuous_usage_stats"}


def test_defaults_of_a_variant_are_left_where_a_request_says_otherwise(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "x"))
    defaults = Defaults(temperature=0.7, top_k=40, top_p=0.95)
    with (
        running_server(engine, tiny_tokenizer, defaults=defaults) as server,
        httpx.Client(base_url=server.url) as own,
    ):
        params = answered_params(own, engine, CHAT, top_k=0, top_p=1, temperature=1)
    assert (params.temperature, params.top_k, params.top_p) == (1, None, 1)
    assert math.isclose(params.repetition_penalty, 1)
