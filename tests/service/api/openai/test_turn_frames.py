"""Calls and thoughts over HTTP, streamed and whole, as the official client sees them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from engine.outputs import TokenLogprobs
from service.api.openai.chat_answers import ChatCompletion, ChatCompletionChunk
from service.text.templates import RenderedPrompt
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    PlainTemplate,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.text.render_options import RenderOptions

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "now")
]
ARGUMENTS = '{"city": "São Paulo 🌦️", "note": "</tool_call>\\n"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
PIECES = ("<tool_call>", "</tool_call>", "<think>", "</think>")


class ThinkingTemplate(PlainTemplate):
    """Has the model think."""

    reasoning_marks = ("<think>", "</think>")
    is_open = False

    def render_prompt(self, messages, options: RenderOptions | None = None, tools=()):
        return RenderedPrompt(self.render(messages, options), opens_reasoning=self.is_open)


class Server:
    """Answers every dialogue with one text."""

    def __init__(self, tokenizer: ByteTokenizer, engine: FakeEngine, url: str) -> None:
        self._tokenizer = tokenizer
        self.engine = engine
        self._url = url

    def post(self, text: str, **fields: Any) -> httpx.Response:
        self.engine.script = says(self._tokenizer, text)
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": MODEL, "messages": messages, "tools": TOOLS, **fields}
        return httpx.post(f"{self._url}/v1/chat/completions", json=body, timeout=60)

    def whole(self, text: str, **fields: Any) -> dict[str, Any]:
        answer = self.post(text, **fields).json()
        ChatCompletion.model_validate_json(json.dumps(answer))
        return answer

    def chunks(self, text: str, **fields: Any) -> list[dict[str, Any]]:
        stream = self.post(text, stream=True, **fields).text
        lines = [line for line in stream.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        data = [line.removeprefix("data: ") for line in lines[:-1]]
        for one in data:
            chunk = ChatCompletionChunk.model_validate_json(one)
            assert chunk.model_dump(exclude_unset=True) == json.loads(one)
        return [json.loads(one) for one in data]


def serving(tokenizer: ByteTokenizer, template: PlainTemplate) -> Iterator[Server]:
    engine = FakeEngine(says(tokenizer, ""), max_model_len=4096)
    with running_server(engine, tokenizer, chat_template=template) as running:
        yield Server(tokenizer, engine, running.url)


@pytest.fixture(scope="module", params=["plain", "pieces"])
def server(request) -> Iterator[Server]:
    """Marks are plain text in one vocabulary, and special pieces in the other."""
    tokenizer = ByteTokenizer(PIECES if request.param == "pieces" else ())
    yield from serving(tokenizer, PlainTemplate(tokenizer))


@pytest.fixture
def thinking(request) -> Iterator[Server]:
    tokenizer = ByteTokenizer(PIECES)
    template = ThinkingTemplate(tokenizer)
    template.is_open = getattr(request, "param", False)
    yield from serving(tokenizer, template)


@pytest.fixture
def thinking_in_text() -> Iterator[Server]:
    """The marks around thoughts are plain text."""
    tokenizer = ByteTokenizer()
    yield from serving(tokenizer, ThinkingTemplate(tokenizer))


def message_of(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """What a client makes of a stream, as the clients that are most careless do it."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            assert delta.get("reasoning_content") == delta.get("reasoning")
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append(call)
                    continue
                assert call.keys() == {"index", "function"}
                assert call["function"].keys() == {"arguments"}
                known = message["tool_calls"][call["index"]]["function"]
                known["arguments"] += call["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return message


def called(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", ())
    ]


# ── calls ───────────────────────────────────────────────────────────────────────────────────────


def test_whole_answer_has_its_calls(server):
    (choice,) = server.whole(f"{CALL}\n{OTHER}")["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] is None
    assert called(message) == [("weather", ARGUMENTS), ("now", "{}")]
    assert [call["type"] for call in message["tool_calls"]] == ["function"] * 2
    assert all(call["id"].startswith("call_") for call in message["tool_calls"])
    assert not {"reasoning", "reasoning_content", "function_call"} & message.keys()


@pytest.mark.parametrize("num_together", [1, 7, 1000])
def test_stream_says_the_same_in_sum(server, num_together):
    server.engine.num_together = num_together
    text = f"Let me see.\n{CALL}\n{OTHER}"
    chunks = server.chunks(text)
    server.engine.num_together = 1
    streamed, whole = message_of(chunks), server.whole(text)["choices"][0]
    assert streamed["content"] == whole["message"]["content"] == "Let me see."
    assert called(streamed) == called(whole["message"])
    assert streamed["finish_reason"] == whole["finish_reason"] == "tool_calls"
    assert len({call["id"] for call in streamed["tool_calls"]}) == 2


def test_first_chunk_of_a_call_names_it_and_others_hold_more_arguments(server):
    deltas = [chunk["choices"][0]["delta"] for chunk in server.chunks(CALL)]
    first, *others = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert first["index"] == 0
    assert first["type"] == "function"
    assert first["function"] == {"name": "weather", "arguments": ""}
    assert "".join(one["function"]["arguments"] for one in others) == ARGUMENTS
    assert len(others) > 10
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert not any("content" in delta for delta in deltas[1:])
    assert deltas[-1] == {}


def test_text_alone_is_streamed_without_calls(server):
    chunks = server.chunks("It is <b>sunny</b>. ")
    assert message_of(chunks)["content"] == "It is <b>sunny</b>. "
    assert message_of(chunks)["finish_reason"] == "stop"
    assert not any("tool_calls" in chunk["choices"][0]["delta"] for chunk in chunks)
    (choice,) = server.whole("It is <b>sunny</b>. ")["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "It is <b>sunny</b>. ",
        "refusal": None,
    }


def test_call_that_was_cut_off_is_none(server):
    num_tokens = 45  # in the midst of the arguments
    (choice,) = server.whole(CALL, max_tokens=num_tokens)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"] == {"role": "assistant", "content": "", "refusal": None}
    streamed = message_of(server.chunks(CALL, max_tokens=num_tokens))
    assert streamed["finish_reason"] == "length"
    assert streamed["content"] == ""


def test_calls_before_one_that_was_cut_off_are_told(server):
    text = f"{OTHER}\n{CALL}"
    num_tokens = 85
    (choice,) = server.whole(text, max_tokens=num_tokens)["choices"]
    assert choice["finish_reason"] == "length"
    assert called(choice["message"]) == [("now", "{}")]


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("call>", "<tool_"),  # of the mark
        ("weat", '<tool_call>\n{"name": "'),
        ("city", None),
        ("🌦️", None),
        ("}", None),
        ("\n</", ""),  # behind a call that is complete
    ],
)
def test_call_that_a_stop_string_ends_is_told_once_in_streams_and_whole_answers(
    server, stop, content
):
    (choice,) = server.whole(CALL, stop=[stop])["choices"]
    chunks = server.chunks(CALL, stop=[stop])
    streamed = message_of(chunks)
    assert (choice["message"]["content"] or "") == streamed["content"] == (content or "")
    is_complete = stop == "\n</"
    assert choice["finish_reason"] == ("tool_calls" if is_complete else "stop")
    assert streamed["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["choices"][0]["stop_reason"] == choice["stop_reason"] == stop
    assert bool(choice["message"].get("tool_calls")) is is_complete
    if content is None:  # what was sent of it stays
        assert called(streamed) == [("weather", ARGUMENTS[: ARGUMENTS.index(stop)])]


def test_call_of_no_tool_is_text(server):
    text = CALL.replace("weather", "nobody")
    (choice,) = server.whole(text)["choices"]
    assert choice["message"]["content"] == text
    assert choice["finish_reason"] == "stop"
    assert message_of(server.chunks(text))["content"] == text


def test_without_tools_marks_are_nothing_special():
    tokenizer = ByteTokenizer()
    for own in serving(tokenizer, PlainTemplate(tokenizer)):
        for fields in ({"tools": []}, {"tool_choice": "none"}):
            (choice,) = own.whole(CALL, **fields)["choices"]
            assert choice["message"]["content"] == CALL
            assert message_of(own.chunks(CALL, **fields))["content"] == CALL


def test_choices_are_read_apart(server):
    chunks = server.chunks(CALL, n=3)
    for index in range(3):
        assert called(message_of(chunks, index)) == [("weather", ARGUMENTS)]
    whole = server.whole(CALL, n=3)["choices"]
    ids = [call["id"] for choice in whole for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 3


def test_functions_are_answered_in_their_own_words(server):
    functions = [{"name": "weather"}]
    (choice,) = server.whole(CALL, tools=[], functions=functions)["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": ARGUMENTS}
    assert "tool_calls" not in choice["message"]
    chunks = server.chunks(CALL, tools=[], functions=functions)
    deltas = [chunk["choices"][0]["delta"].get("function_call") for chunk in chunks]
    first, *others = [delta for delta in deltas if delta]
    assert first == {"name": "weather", "arguments": ""}
    assert "".join(one["arguments"] for one in others) == ARGUMENTS
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_tokens_are_told_beside_calls(server):
    whole = server.whole(CALL, return_token_ids=True)
    chunks = server.chunks(CALL, return_token_ids=True, stream_options={"include_usage": True})
    told = [choice for chunk in chunks for choice in chunk["choices"]]
    ids = [token_id for choice in told for token_id in choice.get("token_ids", ())]
    assert ids == whole["choices"][0]["token_ids"]
    assert chunks[-1]["usage"]["completion_tokens"] == len(ids)
    assert message_of(chunks)["tool_calls"]


def test_continuous_counts_come_with_every_chunk(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = server.chunks(CALL, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


# ── thoughts ────────────────────────────────────────────────────────────────────────────────────


def test_thoughts_are_told_under_both_names(thinking):
    text = f"<think>\nhm, hm\n</think>\n\nSo.\n{CALL}"
    (choice,) = thinking.whole(text)["choices"]
    message = choice["message"]
    assert message["reasoning_content"] == message["reasoning"] == "hm, hm"
    assert message["content"] == "So."
    streamed = message_of(thinking.chunks(text))
    assert (streamed["reasoning_content"], streamed["content"]) == ("hm, hm", "So.")
    assert called(streamed) == called(message) == [("weather", ARGUMENTS)]


@pytest.mark.parametrize("served", ["thinking", "thinking_in_text"])
def test_tokens_of_thoughts_are_counted_in_streams_and_whole_answers(served, request):
    thinking = request.getfixturevalue(served)
    text = "<think>hm, hm</think>yes"
    whole = thinking.whole(text, n=2)["usage"]
    assert whole["completion_tokens_details"] == {"reasoning_tokens": 12}
    chunks = thinking.chunks(
        text, n=2, stream_options={"include_usage": True, "continuous_usage_stats": True}
    )
    told = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in chunks]
    assert told[-1] == 12
    assert told == sorted(told)
    assert told[0] == 0


def test_thoughts_are_told_apart_without_tools(thinking):
    (choice,) = thinking.whole("<think>hm</think>yes", tools=[])["choices"]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("hm", "yes")
    assert choice["finish_reason"] == "stop"
    (choice,) = thinking.whole("yes", tools=[])["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "refusal": None}


@pytest.mark.parametrize("thinking", [True], indirect=True)
def test_answer_begins_with_thoughts_where_the_prompt_opened_them(thinking):
    (choice,) = thinking.whole("hm</think>yes", tools=[])["choices"]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("hm", "yes")
    (choice,) = thinking.whole("hm", tools=[], max_tokens=1)["choices"]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("h", None)
    assert choice["finish_reason"] == "length"


def test_logprobs_of_every_token_are_told_beside_calls(server):
    server.engine.logprobs = lambda token_id, params: TokenLogprobs(-token_id / 100, ())
    text = f"So: {CALL}"
    whole = server.whole(text, logprobs=True)["choices"][0]["logprobs"]["content"]
    choices = [chunk["choices"][0] for chunk in server.chunks(text, logprobs=True)]
    server.engine.logprobs = None
    told = [one for choice in choices for one in (choice["logprobs"] or {}).get("content", ())]
    assert told == whole
    written = b"".join(bytes(one["bytes"]) for one in whole).decode()
    assert written == text
