"""Tools over HTTP: a variant whose template knows none writes calls in the generic way."""

from __future__ import annotations

import json

import pytest

from tests.service.api.anthropic.agent_requests import READ, WEB_SEARCH
from tests.service.api.anthropic.conftest import HI
from tests.service.fakes import says

CALL = '<tool_call>{"name": "Read", "arguments": {"file_path": "ä.py"}}</tool_call>'


@pytest.fixture
def caller(agent, tokenizer):
    """An agent whose model calls."""
    agent.engine.script = says(tokenizer, CALL)
    return agent


def test_a_call_is_a_block_whose_input_is_an_object(caller):
    answer = caller.ask(tools=[READ])
    (block,) = answer["content"]
    assert block["id"].startswith("toolu_")
    assert (block["type"], block["name"]) == ("tool_use", "Read")
    assert block["input"] == {"file_path": "ä.py"}
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("tool_use", None)


def test_a_streamed_call_says_the_same_piece_by_piece(caller):
    events = caller.events(tools=[READ])
    (start,) = [event for event in events if event["type"] == "content_block_start"]
    assert start["content_block"]["id"].startswith("toolu_")
    assert (start["content_block"]["name"], start["content_block"]["input"]) == ("Read", {})
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert {delta["type"] for delta in deltas} == {"input_json_delta"}
    assert len(deltas) > 5
    arguments = "".join(delta["partial_json"] for delta in deltas)
    assert json.loads(arguments) == {"file_path": "ä.py"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_that_is_cut_off_is_none(caller):
    answer = caller.ask(tools=[READ], max_tokens=len(CALL) - 20)
    assert [block for block in answer["content"] if block["type"] == "tool_use"] == []
    assert answer["stop_reason"] == "max_tokens"


def test_a_call_that_a_stop_sequence_ends_is_none_and_is_told_once(caller):
    asked = {"tools": [READ], "stop_sequences": ["ä"]}
    answer = caller.ask(**asked)
    assert answer["content"] == []
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "ä")
    events = caller.events(**asked)
    (start,) = [event for event in events if event["type"] == "content_block_start"]
    assert start["content_block"]["type"] == "tool_use"
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["partial_json"] for delta in deltas) == '{"file_path": "'
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "ä"}


def test_what_looks_like_a_call_is_text_where_there_are_no_tools_to_call(caller):
    for fields in ({}, {"tools": [READ], "tool_choice": {"type": "none"}}, {"tools": [WEB_SEARCH]}):
        answer = caller.ask(**fields)
        assert answer["content"] == [{"type": "text", "text": CALL}]
        assert answer["stop_reason"] == "end_turn"


def test_the_answer_comes_back_with_the_result_of_its_call(caller):
    answer = caller.ask(tools=[READ])
    (block,) = answer["content"]
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "print(1)"}
    dialogue = [
        HI,
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [result]},
    ]
    caller.ask(tools=[READ], messages=dialogue)
    prompt = caller.prompt
    caller.ask(tools=[READ], messages=[HI])
    assert len(prompt) > len(caller.prompt)
    counted = caller.count(tools=[READ], messages=dialogue)
    assert counted == len(prompt) > caller.count(messages=[HI])


def test_a_schema_that_cannot_be_followed_is_named_or_refused(caller):
    schema = {"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "x"}}}
    odd = {"name": "odd", "input_schema": {**schema, "unevaluatedProperties": {"not": {}}}}
    named = caller.ignored(tools=[odd])
    response = caller.post(tools=[{**odd, "strict": True}])
    assert named == ["tools.0.input_schema"]
    assert response.status_code == 400
    assert "tools.0.input_schema" in response.json()["error"]["message"]
