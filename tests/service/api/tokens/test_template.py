"""A dialogue as text over HTTP."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from service.text.templates import ChatTemplate
from tests import models
from tests.service.fakes import FakeEngine, running_server, says

TURNS = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server(tiny_tokenizer):
    template = ChatTemplate(tiny_tokenizer, name="ChatML", source=models.CHATML)
    engine = FakeEngine(says(tiny_tokenizer, "yes"), max_model_len=4096)
    with running_server(engine, tiny_tokenizer, chat_template=template) as running:
        yield running
    template.close()


def test_text_ends_where_the_assistant_speaks_next(server):
    answer = httpx.post(f"{server.url}/apply-template", json={"messages": TURNS}).json()
    assert answer == {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}


def test_last_turn_may_stay_closed_or_open(server):
    body = {"messages": TURNS, "add_generation_prompt": False}
    closed = httpx.post(f"{server.url}/apply-template", json=body).json()
    assert closed == {"prompt": "<|im_start|>user\nHi<|im_end|>\n"}
    turns = [*TURNS, {"role": "assistant", "content": "So"}]
    body = {"messages": turns, "continue_final_message": True}
    opened = httpx.post(f"{server.url}/v1/apply-template", json=body).json()
    assert opened["prompt"].endswith("<|im_start|>assistant\nSo")


TOOL = {"type": "function", "function": {"name": "weather", "description": "tells it"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}


def test_tools_are_told_as_a_chat_is_told_of_them(server):
    turns = [
        *TURNS,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "wet"},
    ]
    body = {"messages": turns, "tools": [TOOL]}
    text = httpx.post(f"{server.url}/apply-template", json=body).json()["prompt"]
    assert all(told in text for told in ("tells it", "weather", "wet"))
    shown = httpx.post(f"{server.url}/v1/chat/completions/render", json=body)
    tokens = httpx.post(f"{server.url}/tokenize", json=body).json()["tokens"]
    assert shown.json()["token_ids"] == tokens
    assert shown.json()["text"].removeprefix("<s>") == text
    silent = {**body, "tool_choice": "none"}
    assert "tells it" not in httpx.post(f"{server.url}/apply-template", json=silent).text


def test_what_only_matters_with_tools_is_named_without(server):
    body = {"messages": TURNS, "parallel_tool_calls": True}
    response = httpx.post(f"{server.url}/apply-template", json=body)
    assert response.headers["x-ignored-params"] == "parallel_tool_calls"


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": TURNS, "chat_template": "x"}])
def test_other_bodies_are_refused(server, body):
    assert httpx.post(f"{server.url}/apply-template", json=body).status_code == 400
