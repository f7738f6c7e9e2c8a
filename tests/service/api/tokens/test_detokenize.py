"""Tokens back to text over HTTP."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from service.api.tokens import detokenize as detokenize_module
from service.serving.text_lanes import MAX_SHORT
from tests.service.fakes import FakeEngine, RunningServer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def server(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as running:
        yield running


def detokenize(server: RunningServer, tokens: object) -> httpx.Response:
    return httpx.post(f"{server.url}/detokenize", json={"tokens": tokens})


@pytest.mark.parametrize("text", ["", "Hi", " two  words\n", "Grüße 世界 🙂"])
def test_text_comes_back_with_its_special_pieces(server, tiny_tokenizer, text):
    answer = detokenize(server, tiny_tokenizer(text).input_ids).json()
    assert answer == {"prompt": f"<s>{text}", "content": f"<s>{text}"}


def test_no_tokens_are_no_text(server):
    assert detokenize(server, []).json() == {"prompt": "", "content": ""}


@pytest.mark.parametrize("token_id", [-1, 512, 2**31, 2**32, 2**64])
def test_ids_out_of_range_are_refused(server, token_id):
    response = detokenize(server, [5, token_id])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "tokens"
    assert "tokens[1]" in error["message"]
    assert "0 to 511" in error["message"]


@pytest.mark.parametrize("tokens", [None, "1", [1.0], ["1"], [True], [[1]]])
def test_what_is_no_list_of_ids_is_refused(server, tokens):
    assert detokenize(server, tokens).status_code == 400


def test_of_ids_that_are_wrong_the_first_is_described(server):
    """Else each of a million would be."""
    message = detokenize(server, ["1"] * 5).json()["error"]["message"]
    assert "tokens.0" in message
    assert "tokens.1" not in message


def test_ids_are_decoded_beside_the_event_loop(server, monkeypatch):
    seen_by: list[str] = []

    def decode(backend, token_ids):
        seen_by.append(threading.current_thread().name)
        return "text"

    monkeypatch.setattr(detokenize_module, "decode_whole", decode)
    for num_ids in (1, MAX_SHORT + 1):
        assert detokenize(server, [5] * num_ids).json()["prompt"] == "text"
    assert [name[:10] for name in seen_by] == ["short-text", "long-text_"]
