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
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
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


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": TURNS, "chat_template": "x"}])
def test_other_bodies_are_refused(server, body):
    assert httpx.post(f"{server.url}/apply-template", json=body).status_code == 400
