"""Responses over HTTP, as the official client and agents see them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import openai
import pytest
from openai.types.responses import Response

from engine.outputs import TokenLogprobs
from service.api.openai.responses import create
from service.api.openai.responses.answer_models import ResponseObject, ResponseStreamEvent
from service.serving.thought_tokens import ThoughtMarks
from service.serving.turns import AskedTurn, PlannedTurn
from service.tools.turn_reader import PlainReader
from tests.service.api.openai.responses import codex
from tests.service.api.openai.responses.turns import MarkedReader
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    PlainTemplate,
    RunningServer,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.sampling_params import SamplingParams

TEXT = "Grüße, 世界! 👩‍👩‍👧 done"
TURN = '<think>Hm.<say>I shall look.<call>look<args>{"at": "ä"}<end>'
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}


def likely(token_id: int, params: SamplingParams) -> TokenLogprobs:
    return TokenLogprobs(-0.5, tuple((token, -0.5 - token) for token in range(params.logprobs)))


@pytest.fixture(scope="module")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def engine(tokenizer: ByteTokenizer) -> FakeEngine:
    return FakeEngine(says(tokenizer, TEXT), max_model_len=4096, logprobs=likely)


@pytest.fixture
def server(engine: FakeEngine, tokenizer: ByteTokenizer) -> Iterator[RunningServer]:
    with running_server(engine, tokenizer) as running:
        yield running
        assert not engine.running


class ThinkingTemplate(PlainTemplate):
    """Has the model think."""

    reasoning_marks = ("<think>", "</think>")


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, engine, tokenizer) -> list[AskedTurn]:
    """The turns that are asked for, each answered by one of thoughts, text and a call."""
    turns: list[AskedTurn] = []

    async def plan(turn: AskedTurn, model: object) -> PlannedTurn:
        turns.append(turn)
        marks = ThoughtMarks("<think>", "<say>", is_open=False)
        return PlannedTurn(
            token_ids=[0, 5],
            param="input",
            text_form=None,
            new_reader=MarkedReader,
            thought_marks=marks,
        )

    monkeypatch.setattr(create, "plan_turn", plan)
    engine.script = says(tokenizer, TURN)
    return turns


def post(server: RunningServer, body: dict[str, Any], path: str = "/v1/responses"):
    return httpx.post(f"{server.url}{path}", json=body, timeout=20)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """A stream's events; each is named, numbered, and as its model says."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for number, block in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        lines = [line for line in block.split("\n") if line != ": keep-alive"]
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        ResponseStreamEvent.model_validate(event)
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def check_paired(events: list[dict[str, Any]]) -> None:
    names = kinds(events)
    for kind in ("output_item", "content_part"):
        assert names.count(f"{kind}.added") == names.count(f"{kind}.done")


# ── whole answers ───────────────────────────────────────────────────────────────────────────────


def test_whole_answer_is_as_the_client_knows_it(client, engine):
    answer = client.responses.create(model=MODEL, input="hi")
    assert answer.id.startswith("resp_")
    assert (answer.object, answer.status, answer.model) == ("response", "completed", MODEL)
    assert answer.output_text == TEXT
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.content[0].annotations == []
    prompt, _ = engine.submitted[-1]
    usage = answer.usage
    assert usage.input_tokens == len(prompt)
    assert usage.output_tokens == len(engine.script(prompt, None)) + 1  # and the end
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert (answer.error, answer.incomplete_details) == (None, None)


def test_answer_is_of_the_clients_own_model_to_the_letter(server):
    """The client itself passes over what does not fit; its model, asked by itself, does not."""
    body = {"input": "hi", "tools": [LOOK], "tool_choice": {"type": "function", "name": "look"}}
    answer = post(server, {**body, "instructions": "Be brief.", "metadata": {"a": "b"}}).json()
    Response.model_validate(answer)
    ResponseObject.model_validate(answer)


def test_cached_tokens_are_counted(client, engine):
    engine.num_cached_tokens = 3
    usage = client.responses.create(model=MODEL, input="hi").usage
    assert usage.input_tokens_details.cached_tokens == 3


def test_request_comes_back_with_the_answer(client):
    answer = client.responses.create(
        model=MODEL,
        input="hi",
        instructions="Be brief.",
        max_output_tokens=50,
        metadata={"session": "1"},
        parallel_tool_calls=False,
        prompt_cache_key="k",
        reasoning={"effort": "low"},
        temperature=0.5,
        text={"verbosity": "high"},
        tools=[LOOK, {"type": "web_search"}],
        tool_choice="none",
        top_p=0.25,
        user="me",
        store=True,
    )
    assert answer.instructions == "Be brief."
    assert answer.max_output_tokens == 50
    assert answer.metadata == {"session": "1"}
    assert answer.parallel_tool_calls is False
    assert answer.prompt_cache_key == "k"
    assert answer.reasoning.effort == "low"
    assert (answer.temperature, answer.top_p) == (0.5, 0.25)
    assert answer.text.format.type == "text"
    assert [tool.name for tool in answer.tools] == ["look"]
    assert answer.tool_choice == "none"
    assert answer.user == "me"
    assert (answer.store, answer.background, answer.truncation) == (False, False, "disabled")


def test_what_tokens_are_picked_with_is_told_where_the_request_is_silent(client):
    answer = client.responses.create(model=MODEL, input="hi")
    assert (answer.temperature, answer.top_p) == (1.0, 1.0)


def test_answer_that_is_cut_is_incomplete_and_says_why(client):
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"
    assert answer.usage.output_tokens == 3


def test_what_is_said_and_instructed_is_rendered(client, engine, tokenizer):
    client.responses.create(
        model=MODEL, instructions="Be brief.", input=[{"role": "user", "content": "hi"}]
    )
    prompt = tokenizer.backend_tokenizer.decode(engine.submitted[-1][0])
    assert prompt == "system: Be brief.\nuser: hi\n"


def test_answer_may_be_sent_back_as_the_client_has_it(client, engine, tokenizer):
    first = client.responses.create(model=MODEL, input="hi")
    items = [{"role": "user", "content": "hi"}, *first.output, {"role": "user", "content": "so"}]
    raw = client.responses.with_raw_response.create(model=MODEL, input=items)
    assert "x-ignored-params" not in raw.headers
    prompt = tokenizer.backend_tokenizer.decode(engine.submitted[-1][0])
    assert prompt == f"user: hi\nassistant: {TEXT}\nuser: so\n"


def test_logprobs_are_told_of_each_token(client, engine):
    answer = client.responses.create(
        model=MODEL, input="hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    (message,) = answer.output
    told = message.content[0].logprobs
    assert b"".join(bytes(one.bytes) for one in told).decode() == TEXT
    assert {one.logprob for one in told} == {-0.5}
    assert {len(one.top_logprobs) for one in told} == {2}
    assert answer.top_logprobs == 2


def test_sampling_and_stops_are_the_requests(client, engine):
    answer = client.responses.create(
        model=MODEL,
        input="hi",
        temperature=0.5,
        extra_body={"top_k": 7, "seed": 11, "stop": [" done"]},
    )
    assert answer.output_text == TEXT.removesuffix(" done")
    _, params = engine.submitted[-1]
    assert (params.temperature, params.top_k, params.seed) == (0.5, 7, 11)


def test_request_id_is_part_of_the_answers_id(client):
    answer = client.responses.create(model=MODEL, input="hi", extra_body={"request_id": "mine"})
    assert answer.id == "resp_mine"
    assert answer.output[0].id == "msg_mine_0"


@pytest.mark.parametrize("path", ["/v1/responses", "/responses"])
def test_path_works_with_and_without_v1(server, path):
    assert post(server, {"input": "hi"}, path).json()["status"] == "completed"


@pytest.mark.parametrize("method", ["retrieve", "delete", "cancel"])
def test_kept_answers_are_not_there_and_it_is_said_why(client, method):
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        getattr(client.responses, method)("resp_1")


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


def test_stream_tells_every_change_and_ends_with_the_whole(server):
    events = events_of(post(server, {"input": "hi", "stream": True}))
    names = kinds(events)
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert "".join(event["delta"] for event in events[4:-4]) == TEXT
    assert all("\ufffd" not in event["delta"] for event in events[4:-4])
    created, whole = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert whole["output"] == [events[-2]["item"]]
    assert created["id"] == whole["id"]


def test_stream_and_whole_answer_say_the_same(server):
    body = {"input": "hi", "request_id": "same", "instructions": "Be brief.", "top_logprobs": 1}
    whole = post(server, body).json()
    streamed = events_of(post(server, {**body, "stream": True}))[-1]["response"]
    assert {**streamed, "created_at": 0} == {**whole, "created_at": 0}


def test_clients_stream_helper_puts_the_answer_together(client):
    with client.responses.stream(model=MODEL, input="hi") as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        final = stream.get_final_response()
    assert text == final.output_text == TEXT


def test_stream_that_is_cut_is_incomplete(server):
    events = events_of(post(server, {"input": "hi", "stream": True, "max_output_tokens": 3}))
    check_paired(events)
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


def test_stream_tells_logprobs_with_their_text(server):
    body = {"input": "hi", "stream": True, "include": ["message.output_text.logprobs"]}
    events = events_of(post(server, body))
    told = [one for event in events if "delta" in event for one in event["logprobs"]]
    assert b"".join(bytes(one["bytes"]) for one in told).decode() == TEXT
    (done,) = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == told


def test_silent_stream_is_kept_alive_by_lines_that_are_no_events(engine, tokenizer):
    engine.delay_s = 0.05
    with running_server(engine, tokenizer, keep_alive_interval_s=0.01) as server:
        body = {"input": "hi", "stream": True, "max_output_tokens": 3}
        response = post(server, body)
        assert ": keep-alive\n" in response.text
        assert ": keep-alive\n\n" not in response.text
        assert "[DONE]" not in response.text
        events_of(response)
        with server.client() as client:
            assert list(client.responses.create(model=MODEL, **body))[-1].sequence_number > 5


# ── thoughts and calls ──────────────────────────────────────────────────────────────────────────


def test_thoughts_text_and_calls_are_items(client, asked):
    answer = client.responses.create(model=MODEL, input="hi", tools=[LOOK])
    thought, message, call = answer.output
    assert thought.content[0].text == "Hm."
    assert message.content[0].text == answer.output_text == "I shall look."
    assert (call.type, call.name, call.call_id, call.status) == (
        "function_call",
        "look",
        "call_0",
        "completed",
    )
    assert json.loads(call.arguments) == {"at": "ä"}
    assert answer.status == "completed"
    assert answer.usage.output_tokens_details.reasoning_tokens == 3
    assert asked[-1].tools.tools[0].name == "look"


@pytest.mark.parametrize("pieces", [(), ("<think>", "</think>")])
def test_tokens_of_thoughts_are_counted_as_in_chat_whatever_their_marks_are(pieces):
    tokenizer = ByteTokenizer(pieces)
    engine = FakeEngine(says(tokenizer, "<think>\nhm\n</think>\nyes"))
    thinking = ThinkingTemplate(tokenizer)
    with (
        running_server(engine, tokenizer, chat_template=thinking) as server,
        server.client() as client,
    ):
        answer = client.responses.create(model=MODEL, input="hi")
        *_, last = client.responses.create(model=MODEL, input="hi", stream=True)
        messages = [{"role": "user", "content": "hi"}]
        chat = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.usage == last.response.usage
    assert answer.usage.output_tokens_details.reasoning_tokens == 4
    assert chat.usage.completion_tokens_details.reasoning_tokens == 4


def test_thoughts_text_and_calls_are_streamed(client, asked):
    with client.responses.stream(model=MODEL, input="hi", tools=[LOOK]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    names = [event.type.removeprefix("response.") for event in events]
    for kind in ("output_item", "content_part"):
        assert names.count(f"{kind}.added") == names.count(f"{kind}.done")
    begun = [names.index(f"{kind}.delta") for kind in ("reasoning_text", "output_text")]
    assert begun == sorted(begun)
    arguments = "".join(
        event.delta for event in events if event.type == "response.function_call_arguments.delta"
    )
    assert json.loads(arguments) == {"at": "ä"}
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_custom_tool_is_called_with_its_text(client, asked, engine, tokenizer):
    engine.script = says(tokenizer, '<call>patch<args>{"input": "*** ä"}<end>')
    tools = [{"type": "custom", "name": "patch"}]
    (item,) = client.responses.create(model=MODEL, input="hi", tools=tools).output
    assert (item.type, item.input) == ("custom_tool_call", "*** ä")


def test_pieces_that_the_reader_needs_are_text_and_schemas_without_effect_are_named(
    server, engine, monkeypatch
):
    async def plan(turn: AskedTurn, model: object) -> PlannedTurn:
        return PlannedTurn(
            token_ids=[0, 5],
            param="input",
            text_form=None,
            new_reader=PlainReader,
            kept_token_ids=frozenset({2}),
            unfollowed=["tools.0.parameters"],
        )

    monkeypatch.setattr(create, "plan_turn", plan)
    engine.script = lambda prompt, params: [2]
    response = post(server, {"input": "hi", "tools": [LOOK]})
    assert response.json()["output"][0]["content"][0]["text"] == "<|im_start|>"
    assert response.headers["x-ignored-params"] == "tools.0.parameters"


@pytest.mark.parametrize("stream", [False, True])
def test_call_that_was_cut_is_no_call(server, asked, stream):
    body = {"input": "hi", "tools": [LOOK], "stream": stream, "max_output_tokens": len(TURN) - 5}
    response = post(server, body)
    if stream:
        events = events_of(response)
        check_paired(events)
        cut = events[-2]["item"]
        assert (cut["type"], cut["status"]) == ("function_call", "incomplete")
        answer = events[-1]["response"]
    else:
        answer = response.json()
    assert answer["status"] == "incomplete"
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message"]


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def test_error_before_an_answer_is_of_openais_shape(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="hi", temperature=5)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="unknown", input="hi", stream=True)
    with pytest.raises(openai.BadRequestError, match="keeps nothing"):
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")


def test_dialogue_that_is_too_long_is_an_error_with_its_code(client):
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        client.responses.create(model=MODEL, input="hi " * 5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


@pytest.mark.parametrize("body", [{"input": "hi " * 5000}, {"max_output_tokens": 5000}])
def test_stream_of_what_is_too_long_fails_with_the_code_that_agents_wait_for(server, body):
    response = post(server, {"input": "hi", "stream": True, "made_up": 1, **body})
    events = events_of(response)
    assert kinds(events) == ["created", "in_progress", "error", "failed"]
    assert events[2]["code"] == "context_length_exceeded"
    assert "maximum context length" in events[2]["message"]
    failed = events[3]["response"]
    assert (failed["status"], failed["output"]) == ("failed", [])
    assert failed["error"]["code"] == "context_length_exceeded"
    assert response.headers["x-ignored-params"] == "made_up"
    assert response.headers["x-kernel"] == "reference"


def test_what_is_too_long_is_not_repeated(server):
    body = {"input": "hi", "stream": True, "instructions": "long " * 5000, "tools": [LOOK]}
    response = post(server, body)
    assert events_of(response)[-1]["type"] == "response.failed"
    assert len(response.content) < 5000


@pytest.mark.parametrize("num_tokens", [0, 1, 8, 30, 50, 58])
def test_stream_that_fails_ends_what_it_began_and_says_why(server, engine, asked, num_tokens):
    engine.fails_after = num_tokens
    events = events_of(post(server, {"input": "hi", "stream": True, "tools": [LOOK]}))
    check_paired(events)
    assert kinds(events)[-2:] == ["error", "failed"]
    error, failed = events[-2], events[-1]["response"]
    assert error["code"] == failed["error"]["code"] == "engine_dead"
    assert isinstance(error["message"], str)
    assert failed["status"] == "failed"
    assert failed["usage"]["output_tokens"] == num_tokens
    ended = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert failed["output"] == [one for one in ended if one["type"] != "function_call"]


# ── agents ──────────────────────────────────────────────────────────────────────────────────────


def test_codex_is_answered_and_told_what_it_cannot_be_given(server, engine, tokenizer):
    response = post(server, codex.request(MODEL, codex.FIRST_INPUT))
    events = events_of(response)
    assert events[-1]["type"] == "response.completed"
    assert set(response.headers["x-ignored-params"].split(", ")) == codex.IGNORED
    prompt = tokenizer.backend_tokenizer.decode(engine.submitted[-1][0])
    assert prompt.index("You are a coding agent") < prompt.index("<permissions>")
    assert prompt.endswith("Which files are there?\n")


def test_codex_goes_on_with_what_its_tools_found(server, asked):
    response = post(server, codex.request(MODEL, codex.NEXT_INPUT))
    assert events_of(response)[-1]["type"] == "response.completed"
    assert set(response.headers["x-ignored-params"].split(", ")) == codex.IGNORED_NEXT
    (turn,) = asked
    calls = [call for message in turn.messages for call in message.get("tool_calls", ())]
    assert [call.name for call in calls] == ["shell_command", "apply_patch"]
    assert [m["content"] for m in turn.messages if m["role"] == "tool"] == [
        "Exit code: 0\nOutput:\nREADME.md\n",
        "Done.",
    ]


def test_codex_finds_its_list_of_models(server):
    answer = httpx.get(f"{server.url}/models", params={"client_version": "0.99.0"}).json()
    assert answer["models"] == []


def test_pattern_of_a_custom_tool_is_refused_by_its_field_where_it_cannot_be_followed(server):
    tools = [
        {"type": "web_search"},
        {
            "type": "custom",
            "name": "patch",
            "format": {"type": "grammar", "syntax": "regex", "definition": "(?=a)b"},
        },
    ]
    response = post(server, {"input": "hi", "tools": tools})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "tools.1.format.definition")
    assert "look-around" in error["message"]
    tools[1]["format"]["definition"] = "ab"
    assert post(server, {"input": "hi", "tools": tools}).status_code == 200
