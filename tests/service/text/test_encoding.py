"""Texts that a tokenizer breaks on, or never finishes, cost their own request and nothing else."""

import hashlib
import threading
import time
from types import SimpleNamespace

import pytest
from tokenizers import Regex, pre_tokenizers

from service.text import encoding
from service.text.encoding import MAX_UNFINISHED, encode_in_time
from service.text.errors import TokenizerFailedError
from service.text.prompt import encode_prompt
from tests.models import tiny_tokenizer


class SlowBackend:
    """Keeps a core busy without Python's lock until it is let go, as an expression does."""

    def __init__(self):
        self.may_end = threading.Event()

    def encode_batch(self, texts, add_special_tokens):
        while texts == ["hang"] and not self.may_end.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)
        return [SimpleNamespace(ids=[len(text)]) for text in texts]


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(encoding, "LIMIT_S", 0.1)
    backend = SlowBackend()
    yield backend
    backend.may_end.set()


def hang(backend):
    with pytest.raises(TokenizerFailedError, match=r"given up after 0\.1 s .* 4 characters"):
        encode_in_time(backend, "hang")


def test_ids_are_the_tokenizers_own():
    tokenizer = tiny_tokenizer()
    expected = tokenizer.backend_tokenizer.encode("Hello", add_special_tokens=False).ids
    assert encode_in_time(tokenizer.backend_tokenizer, "Hello") == expected


def test_a_text_that_takes_too_long_is_given_up(backend):
    hang(backend)
    assert encode_in_time(backend, "other") == [5]


def test_a_tokenizer_with_texts_that_never_end_gets_no_more_until_they_do(backend):
    for _ in range(MAX_UNFINISHED):
        hang(backend)
    with pytest.raises(TokenizerFailedError, match=f"still busy with {MAX_UNFINISHED} texts"):
        encode_in_time(backend, "other")
    assert encode_in_time(SlowBackend(), "another model's") == [15]
    backend.may_end.set()
    deadline = time.monotonic() + 5
    while encoding._unfinished and time.monotonic() < deadline:
        time.sleep(0.01)
    assert encode_in_time(backend, "other") == [5]


def test_waiting_for_a_processor_costs_no_time(backend, monkeypatch):
    """A machine that is busy with other things gives nobody up."""
    encode_batch = backend.encode_batch

    def wait(texts, add_special_tokens):
        time.sleep(0.4)
        return encode_batch(texts, add_special_tokens)

    monkeypatch.setattr(backend, "encode_batch", wait)
    assert encode_in_time(backend, "x") == [1]


def splitting_by(pattern):
    tokenizer = tiny_tokenizer()
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


def test_a_panic_of_the_library_is_told_without_the_text():
    tokenizer = splitting_by("(x+x+)+y")
    with pytest.raises(TokenizerFailedError, match="broke on this text") as raised:
        encode_prompt(tokenizer, "x" * 60)
    assert "xx" not in str(raised.value)
    assert encode_prompt(tokenizer, "hello")


def test_an_expression_that_backtracks_is_stopped_by_time(monkeypatch):
    monkeypatch.setattr(encoding, "LIMIT_S", 0.1)
    monkeypatch.setattr(encoding, "CHARACTER_LIMIT_S", 0.0)
    with pytest.raises(TokenizerFailedError, match="given up"):
        encode_prompt(splitting_by(r"x*x*\s\d"), "x" * 1_000)
