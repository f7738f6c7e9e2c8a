"""A stream says what the whole answer says, in bytes that the chunks' models would encode.

Over texts of any kind: characters of several tokens, special pieces, stop strings across borders.
The engine says the prompt back, so that each example brings its own answer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.outputs import TokenLogprobs
from service.api.openai.chat_answers import ChatCompletion, ChatCompletionChunk
from service.api.openai.completion_answers import Completion, CompletionChunk
from tests.service.fakes import MODEL, VOCAB_SIZE, FakeEngine, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.sampling_params import SamplingParams

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
CHUNKS = {COMPLETIONS: CompletionChunk, CHAT: ChatCompletionChunk}
WHOLES = {COMPLETIONS: Completion, CHAT: ChatCompletion}
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def say_back(prompt: Sequence[int], params: SamplingParams) -> Sequence[int]:
    """Say what the prompt has behind its BOS; a dialogue's role and line end left out."""
    return prompt[1:]


def logprobs_by_id(token_id: int, params: SamplingParams) -> TokenLogprobs:
    """Of each token something of its own: tiny, ordinary or endless."""
    num_top = max(params.logprobs or 0, params.prompt_logprobs or 0)
    own = (-1e-9, -0.1234567890123, -float("inf"))[token_id % 3]
    top = [((token_id + i) % VOCAB_SIZE, own - i / 3) for i in range(num_top)]
    return TokenLogprobs(own, tuple(top))


@pytest.fixture(scope="module", params=[1, 3], ids=["one by one", "three together"])
def client(request: pytest.FixtureRequest, tiny_tokenizer) -> Iterator[httpx.Client]:
    engine = FakeEngine(
        say_back, max_model_len=4096, logprobs=logprobs_by_id, num_together=request.param
    )
    with (
        running_server(engine, tiny_tokenizer) as server,
        httpx.Client(base_url=server.url, timeout=20) as made,
    ):
        yield made
        assert not engine.running


texts = st.lists(
    st.sampled_from(
        [
            "one ",
            "two",
            " three",
            "ü",
            "世界",
            "🙂",
            "👩‍👩‍👧",
            "\n",
            '"',
            "\\",
            "\x00",
            "\x7f",
            *SPECIAL,
        ]
    )
    | st.text(max_size=3).filter(lambda text: text.isprintable() or text < "\ud800"),
    min_size=1,
    max_size=8,
).map("".join)
fields = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(0, 40),
        "n": st.sampled_from([1, 2]),
        "stop": st.sampled_from([[], ["two"], [" th", "界"], ["o", "\n"], ["e two"], ["never"]]),
        "include_stop_str_in_output": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "ignore_eos": st.booleans(),
        "return_token_ids": st.booleans(),
        "stop_token_ids": st.sampled_from([[], [300]]),
    }
)
stream_options = st.fixed_dictionaries(
    {"include_usage": st.booleans(), "continuous_usage_stats": st.booleans()}
)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ask(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    response = client.post(path, json={"model": MODEL, **body})
    assert response.status_code == 200, response.text
    return response


def read_stream(response: httpx.Response, path: str) -> list[dict[str, Any]]:
    """Return the chunks, each of which must be what its model would encode."""
    *events, done, rest = response.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    for event in events:
        data = event.removeprefix(b"data: ")
        chunk = CHUNKS[path].model_validate_json(data)
        assert chunk.model_dump_json(exclude_unset=True).encode() == data
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def join(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the chunks together to what the whole answer would be."""
    choices: dict[int, dict[str, Any]] = defaultdict(
        lambda: {"text": "", "logprobs": None, "token_ids": []}
    )
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices[part["index"]]
            assert "finish_reason" not in choice, "something came behind the end"
            choice["text"] += part["text"] if "text" in part else part["delta"].get("content", "")
            choice["token_ids"] += part.get("token_ids", [])
            for name, items in (part["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {}
                if items is not None:
                    choice["logprobs"].setdefault(name, []).extend(items)
            if part["finish_reason"]:
                choice["finish_reason"] = part["finish_reason"]
                choice["stop_reason"] = part["stop_reason"]
    return dict(choices)


def check_same(client: httpx.Client, path: str, body: dict[str, Any], options: object) -> Any:
    """Ask for a stream and for the whole; return the whole."""
    whole_bytes = ask(client, path, body).content
    encoded = WHOLES[path].model_validate_json(whole_bytes)
    assert encoded.model_dump_json(exclude_unset=True).encode() == whole_bytes
    whole = json.loads(whole_bytes)
    chunks = read_stream(
        ask(client, path, {**body, "stream": True, "stream_options": options}), path
    )
    if options["include_usage"]:
        assert chunks[-1]["usage"] == whole["usage"]
        assert chunks.pop()["choices"] == []
    if options["continuous_usage_stats"]:
        assert chunks[-1]["usage"] == whole["usage"]
    joined = join(chunks)
    assert len(joined) == len(whole["choices"])
    for choice in whole["choices"]:
        streamed = joined[choice["index"]]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert streamed["text"] == text
        assert streamed["finish_reason"] == choice["finish_reason"]
        assert streamed["stop_reason"] == choice["stop_reason"]
        assert streamed["token_ids"] == choice.get("token_ids", [])
        told = {name: items for name, items in (choice["logprobs"] or {}).items() if items}
        assert (streamed["logprobs"] or {}) == told
    return whole


@quick
@given(
    text=texts,
    fields=fields,
    options=stream_options,
    logprobs=st.sampled_from([None, 0, 2]),
    echo=st.booleans(),
)
def test_completions_stream_what_they_answer(client, text, fields, options, logprobs, echo):
    body = {"prompt": text, **fields, "logprobs": logprobs, "echo": echo}
    whole = check_same(client, COMPLETIONS, body, options)
    for choice in whole["choices"]:
        if not fields["include_stop_str_in_output"]:
            answer = choice["text"][len(text) if echo else 0 :]
            assert not any(stop in answer for stop in fields["stop"])
        if logprobs is not None:
            check_offsets(choice, fields)


def check_offsets(choice: dict[str, Any], fields: dict[str, Any]) -> None:
    told = choice["logprobs"]
    assert told["text_offset"] == sorted(told["text_offset"])
    assert len({len(items) for items in told.values()}) == 1
    end = 0
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        if "\ufffd" in token:
            end = max(end, offset)
            continue
        if choice["text"].startswith(token, offset):
            assert offset >= end
            end = offset + len(token)
        else:  # it is not shown
            assert token in SPECIAL
            assert token != "</s>" or fields["ignore_eos"] or fields["include_stop_str_in_output"]


@quick
@given(
    text=texts,
    fields=fields,
    options=stream_options,
    logprobs=st.sampled_from([{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}]),
)
def test_chats_stream_what_they_answer(client, text, fields, options, logprobs):
    body = {"messages": [{"role": "user", "content": text}], **fields, **logprobs}
    whole = check_same(client, CHAT, body, options)
    for choice in whole["choices"]:
        answer = choice["message"]["content"]
        if not fields["include_stop_str_in_output"]:
            assert not any(stop in answer for stop in fields["stop"])
        if logprobs:
            tokens = choice["logprobs"]["content"]
            shown = [token for token in tokens if token["token"] not in SPECIAL]
            joined = bytes(byte for token in shown for byte in token["bytes"])
            for piece in SPECIAL:
                answer = answer.replace(piece, "")
            assert joined.decode(errors="replace") == answer


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("turn", "a re"),
        ("ight", "a return the we"),
        ("n the we", "a retur"),
        ("界", "a return the weights 世"),
    ],
)
def test_nothing_of_a_stop_string_shows_in_tokens(client, stop, left):
    """Of a token in whose middle the stop string begins, only what lies before it is told."""
    text = "a return the weights 世界"
    body = {"prompt": text, "logprobs": 2, "stop": stop, "max_tokens": 40}
    for path, fields in (
        (COMPLETIONS, body),
        (CHAT, {"messages": [{"role": "user", "content": text}], "logprobs": True, "stop": stop}),
    ):
        options = {"include_usage": False, "continuous_usage_stats": False}
        choice = check_same(client, path, fields, options)["choices"][0]
        if path == COMPLETIONS:
            assert choice["text"] == left
            told = "".join(choice["logprobs"]["tokens"])
            assert told.replace("\ufffd", "") == left.replace("世", "")
            last = {**choice["logprobs"]["top_logprobs"][-1]}
            assert choice["logprobs"]["tokens"][-1] in last
        else:
            raw = bytes(byte for token in choice["logprobs"]["content"] for byte in token["bytes"])
            assert raw.decode() == choice["message"]["content"] == f"user: {left}"


def test_endless_logprobs_are_told_as_a_number(client, tiny_tokenizer):
    body = {"prompt": "one two three", "logprobs": 2, "max_tokens": 40}
    told = ask(client, COMPLETIONS, body).json()["choices"][0]["logprobs"]["token_logprobs"]
    assert min(told) == -9999.0


def test_echo_tells_the_prompts_tokens_first_without_a_logprob_of_the_first(client, tiny_tokenizer):
    for max_tokens in (0, 3):
        body = {"prompt": "Grüße", "echo": True, "logprobs": 1, "max_tokens": max_tokens}
        choice = ask(client, COMPLETIONS, body).json()["choices"][0]
        ids = tiny_tokenizer.encode("Grüße")
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(ids) + max_tokens
        assert (told["tokens"][0], told["token_logprobs"][0]) == ("<s>", None)
        assert told["top_logprobs"][0] is None
        assert told["text_offset"][:2] == [0, 0]
        assert all(logprob is not None for logprob in told["token_logprobs"][1:])
        assert choice["text"].startswith("Grüße")
        assert told["text_offset"][len(ids) :][:1] == ([5] if max_tokens else [])
        assert choice["finish_reason"] == "length"


def test_answers_to_several_prompts_are_placed_in_their_own_texts(client):
    body = {"prompt": ["ab", "世界 x"], "n": 2, "echo": True, "logprobs": 0, "max_tokens": 4}
    whole = check_same(
        client, COMPLETIONS, body, {"include_usage": True, "continuous_usage_stats": False}
    )
    assert [choice["text"][:2] for choice in whole["choices"]] == ["ab", "ab", "世界", "世界"]
