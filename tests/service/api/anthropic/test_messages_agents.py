"""An agent's recorded requests, from its first to the one that brings what its tools found."""

from __future__ import annotations

import pytest

from tests.service.api.anthropic.agent_requests import QUERY, first_turn, second_turn
from tests.service.api.anthropic.conftest import HI, TEXT, events_of
from tests.service.fakes import says


@pytest.mark.parametrize("make", [first_turn, second_turn])
def test_an_agents_request_is_answered_and_what_is_ignored_is_named(thinker, make):
    response = thinker.http.post(QUERY, json=make())
    assert response.status_code == 200, response.text
    events = events_of(response.text)
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == TEXT
    names = set(response.headers["x-ignored-params"].split(", "))
    assert names - {"messages[].content[].redacted_thinking"} == {
        "context_management",
        "tools[].web_search_20250305",
        "system.x-anthropic-billing-header",
    }
    assert thinker.engine.callers[-1].startswith('{"device_id"')
    options = thinker.template.options
    assert options.template_kwargs == {"enable_thinking": True, "reasoning_effort": "high"}


def test_requests_that_differ_in_their_billing_line_have_one_prompt(agent):
    prompts = []
    for cch in ("00000", "a1b2c"):
        assert agent.http.post(QUERY, json=first_turn(cch)).status_code == 200
        prompts.append(agent.prompt)
    assert prompts[0] == prompts[1]
    assert agent.http.post(QUERY, json=second_turn("fffff")).status_code == 200
    assert agent.prompt[:20] == prompts[0][:20]


def test_an_agents_request_is_counted_as_it_is_answered(agent):
    for make in (first_turn, second_turn):
        request = make()
        del request["max_tokens"], request["stream"], request["temperature"]
        whole = agent.ask(**request)
        assert agent.count(**request) == whole["usage"]["input_tokens"]


def test_an_assistants_last_turn_is_the_beginning_of_the_answer(thinker):
    answer = thinker.ask(messages=[HI, {"role": "assistant", "content": "{"}])
    assert answer["content"] == [{"type": "text", "text": TEXT}]
    assert thinker.template.options.continue_final_message
    assert thinker.template.messages[-1] == {"role": "assistant", "content": "{"}


def test_thoughts_of_the_model_are_a_block_before_its_text(thinker, tokenizer):
    thinker.engine.script = says(tokenizer, "<think>Ünd so</think>\n\nyes")
    answer = thinker.ask()
    thoughts, text = answer["content"]
    assert (thoughts["type"], thoughts["thinking"]) == ("thinking", "Ünd so")
    assert text == {"type": "text", "text": "yes"}
    deltas = [one["delta"] for one in thinker.events() if one["type"] == "content_block_delta"]
    assert "".join(one.get("thinking", "") for one in deltas) == "Ünd so"
    assert "".join(one.get("text", "") for one in deltas) == "yes"
    back = [HI, {"role": "assistant", "content": answer["content"]}, HI]
    thinker.ask(messages=back)
    assert thinker.template.messages[1]["reasoning_content"] == "Ünd so"


def test_thoughts_reach_a_template_that_reads_them_and_are_named_elsewhere(thinker, agent):
    thought = {"type": "thinking", "thinking": "so", "signature": "x"}
    spoken = {"role": "assistant", "content": [thought, {"type": "text", "text": "a"}]}
    thinker.ask(messages=[HI, spoken, HI])
    assert thinker.template.messages[1]["reasoning_content"] == "so"
    assert thinker.ignored(messages=[HI, spoken, HI]) == [""]
    assert agent.ignored(messages=[HI, spoken, HI]) == ["messages[].content[].thinking"]
