"""A tokenizer that breaks or hangs on one request's text fails that request, and no other."""

from __future__ import annotations

import threading
import time

import httpx2 as httpx
import pytest
from tokenizers import Regex, decoders, pre_tokenizers

from service.text import encoding
from tests.models import tiny_tokenizer
from tests.service.fakes import MODEL, FakeEngine, running_server, says

BREAKS, HANGS = "x" * 60, "z" * 1_200
TEXT = "one two"


@pytest.fixture(scope="module")
def tokenizer():
    """Breaks on a run of x, and takes seconds for a run of z."""
    made = tiny_tokenizer()
    expressions = [Regex("(x+x+)+y"), Regex(r"z*z*\s\d")]
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(expression, "isolated") for expression in expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return made


@pytest.fixture(scope="module")
def url(tokenizer):
    with running_server(FakeEngine(says(tokenizer, TEXT)), tokenizer) as server:
        yield server.url


def complete(url, prompt, **fields):
    body = {"model": MODEL, "prompt": prompt, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=30)


def is_right(answer):
    return answer.status_code == 200 and answer.json()["choices"][0]["text"] == TEXT


def code_of(answer):
    return answer.status_code, answer.json()["error"]["code"]


def test_a_text_on_which_the_library_panics_is_answered_in_words(url):
    for fields in ({}, {"stream": True}):
        answer = complete(url, BREAKS, **fields)
        assert code_of(answer) == (400, "tokenizer_failed")
        assert "broke on this text" in answer.json()["error"]["message"]
        assert "xx" not in answer.text
    assert is_right(complete(url, "hi"))


def test_a_panic_that_nobody_foresaw_is_a_fault_of_the_server(url):
    """The template of these tests encodes without asking for time."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": BREAKS}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert code_of(answer) == (500, "internal_error")
    assert is_right(complete(url, "hi"))


def test_while_one_text_hangs_others_are_answered_and_it_is_given_up(url, monkeypatch):
    monkeypatch.setattr(encoding, "LIMIT_S", 0.5)
    monkeypatch.setattr(encoding, "CHARACTER_LIMIT_S", 0.0)
    answers = []
    hanging = threading.Thread(target=lambda: answers.append(complete(url, HANGS)))
    hanging.start()
    time.sleep(0.1)
    assert is_right(complete(url, "hi"))
    assert hanging.is_alive()
    hanging.join()
    assert code_of(answers[0]) == (400, "tokenizer_failed")
    assert "given up after 0.5 s" in answers[0].json()["error"]["message"]


def test_a_panic_while_text_is_made_of_ids_ends_the_answer_in_words():
    made = tiny_tokenizer()
    made.add_tokens([BREAKS])
    made.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(Regex("(x+x+)+y"), "y")]
    )
    with running_server(FakeEngine(lambda prompt, params: [5, 6, 1]), made) as server:
        assert code_of(complete(server.url, "hi")) == (400, "tokenizer_failed")
        assert '"code":"tokenizer_failed"' in complete(server.url, "hi", stream=True).text
        echoed = complete(server.url, [len(made) - 1], echo=True)
        assert code_of(echoed) == (400, "tokenizer_failed")
        assert httpx.get(f"{server.url}/health").status_code == 200
