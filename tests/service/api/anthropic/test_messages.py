"""Messages over HTTP: whole, streamed and counted, and what ends them."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from service.api.anthropic.answers import AnsweredMessage, StreamedEvent
from service.api.anthropic.messages import MAX_COUNTED
from tests.service.fakes import MODEL, ByteTokenizer, FakeEngine, running_server, says

TEXT = "Grüße, 世界 🙂"
HI = {"role": "user", "content": "hi"}


def text_of(events: list[dict]) -> str:
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return "".join(delta["text"] for delta in deltas)


def test_a_whole_answer_has_blocks_reason_and_usage(agent):
    answer = agent.ask(model=MODEL)
    AnsweredMessage.model_validate(answer)
    assert answer["id"].startswith("msg_")
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", MODEL)
    assert answer["content"] == [{"type": "text", "text": TEXT}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["usage"] == {
        "input_tokens": len(agent.prompt),
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "output_tokens": len(TEXT.encode()) + 1,  # and the end
    }


def test_a_stream_says_what_the_whole_answer_says(agent):
    whole, events = agent.ask(), agent.events()
    for event in events:
        StreamedEvent.model_validate(event)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert text_of(events) == whole["content"][0]["text"]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"] == whole["usage"]


def test_the_first_event_tells_the_prompts_tokens_apart_from_cached_ones(agent):
    agent.engine.num_cached_tokens = 3
    start, *_, last, _ = agent.events()
    message = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    for usage in (message["usage"], last["usage"], agent.ask()["usage"]):
        assert usage["input_tokens"] == len(agent.prompt) - 3
        assert usage["cache_read_input_tokens"] == 3


def test_a_stop_sequence_is_told_and_not_part_of_the_text(agent):
    answer = agent.ask(stop_sequences=["界", "never"])
    assert answer["content"][0]["text"] == "Grüße, 世"
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "界")
    *_, last, _ = agent.events(stop_sequences=["界"])
    assert last["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "界"}


def test_an_answer_of_nothing_has_no_blocks(agent, tokenizer):
    agent.engine.script = says(tokenizer, "")
    assert agent.ask()["content"] == []
    assert [event["type"] for event in agent.events()] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


def test_max_tokens_ends_an_answer(agent):
    answer = agent.ask(max_tokens=4)
    assert answer["stop_reason"] == "max_tokens"
    assert answer["usage"]["output_tokens"] == 4
    answer = agent.ask(max_tokens=0)  # which only reads the prompt
    assert (answer["content"], answer["stop_reason"]) == ([], "max_tokens")


def test_more_tokens_than_the_context_has_left_are_cut_to_those_it_has(tokenizer):
    engine = FakeEngine(says(tokenizer, "x" * 300), max_model_len=64)
    with running_server(engine, tokenizer) as server:
        for fields in ({"max_tokens": 64_000}, {}):
            response = httpx.post(f"{server.url}/v1/messages", json={"messages": [HI], **fields})
            answer = response.json()
            prompt, params = engine.submitted[-1]
            assert params.max_tokens == 64 - len(prompt)
            assert answer["stop_reason"] == "model_context_window_exceeded"
            assert answer["usage"]["output_tokens"] == 64 - len(prompt)


def test_tokens_are_counted_as_the_answer_counts_them_and_nothing_runs(agent):
    fields = {"system": "be brief", "messages": [HI, {"role": "assistant", "content": "ho"}, HI]}
    num_submitted = len(agent.engine.submitted)
    counted = agent.count(**fields)
    assert len(agent.engine.submitted) == num_submitted
    assert counted == agent.ask(**fields)["usage"]["input_tokens"]


def test_tokens_are_counted_where_the_queue_is_full_and_beyond_the_context(agent, monkeypatch):
    def refuse(*_args: object) -> None:
        raise AssertionError("counting asked for a place in the queue")

    monkeypatch.setattr(agent.engine, "reserve", refuse)
    long = {"role": "user", "content": "x" * (agent.engine.max_model_len + 1)}
    assert agent.count(messages=[long]) > agent.engine.max_model_len


def test_texts_that_no_context_would_hold_are_refused_before_they_are_encoded(thinker):
    thinker.ask()
    assert thinker.template.options.most_tokens == thinker.engine.max_model_len
    thinker.count()
    assert thinker.template.options.most_tokens == MAX_COUNTED


def test_fields_of_an_answer_are_named_as_ignored_where_tokens_are_counted(agent):
    body = {"messages": [HI], "max_tokens": 4}
    response = agent.http.post("/v1/messages/count_tokens", json=body)
    assert response.headers["x-ignored-params"] == "max_tokens"


def test_sampling_and_the_user_reach_the_engine(agent):
    agent.ask(temperature=0.25, top_p=0.5, top_k=7, metadata={"user_id": "user_1_session_2"})
    _, params = agent.engine.submitted[-1]
    assert (params.temperature, params.top_p, params.top_k) == (0.25, 0.5, 7)
    assert agent.engine.callers[-1] == "user_1_session_2"


def test_both_paths_work_without_the_version_and_whatever_the_query_says(agent):
    body = {"messages": [HI], "max_tokens": 1}
    assert agent.http.post("/messages?beta=true", json=body).status_code == 200
    assert agent.http.post("/messages/count_tokens?beta=true", json=body).status_code == 200


@pytest.mark.parametrize("header", ["x-request-id", "request-id"])
def test_both_headers_tell_the_requests_id(agent, header):
    response = agent.http.post(
        "/v1/messages", json={"messages": [HI]}, headers={"x-request-id": "mine"}
    )
    assert response.headers[header] == "mine"
    assert "request-id" not in agent.http.get("/v1/models").headers


def test_silence_is_broken_by_pings_which_are_events(tokenizer):
    engine = FakeEngine(says(tokenizer, "yes"), delay_s=0.05)
    with running_server(engine, tokenizer, keep_alive_interval_s=0.01) as server:
        body = {"messages": [HI], "stream": True}
        text = httpx.post(f"{server.url}/v1/messages", json=body).text
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in text.partition("event: message_start")[0]
    assert text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert "[DONE]" not in text


def test_the_list_of_models_has_anthropics_fields_where_its_clients_ask(agent):
    listed = agent.http.get("/v1/models", headers=agent.headers).json()
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, MODEL, MODEL)
    (model,) = listed["data"]
    assert (model["type"], model["display_name"]) == ("model", MODEL)
    assert model["created_at"] == "2023-11-14T22:13:20Z"


def test_a_variant_that_cannot_chat_says_why():
    tokenizer = ByteTokenizer()
    engine = FakeEngine(says(tokenizer, "yes"))
    with running_server(engine, tokenizer, chat_refusal="it is a base model") as server:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            response = httpx.post(server.url + path, json={"messages": [HI]})
            assert response.status_code == 400
            assert "base model" in response.json()["error"]["message"]
