"""Texts that a tokenizer breaks on, or never finishes, cost their own request and nothing else."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from tokenizers import Regex, pre_tokenizers

from service.text import encoding
from service.text.control_pieces import ControlPieces
from service.text.encoding import MAX_AT_ONCE, encode_in_time
from service.text.errors import TokenizerFailedError
from service.text.prompt import encode_prompt
from tests.models import tiny_tokenizer


class SlowBackend:
    """Keeps a core busy without Python's lock until it is let go, as an expression does."""

    def __init__(self):
        self.may_end = threading.Event()

    def encode_batch_fast(self, texts, add_special_tokens):
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
    for _ in range(MAX_AT_ONCE):
        hang(backend)
    with pytest.raises(TokenizerFailedError, match=f"still busy with {MAX_AT_ONCE} texts"):
        encode_in_time(backend, "other")
    assert encode_in_time(SlowBackend(), "another model's") == [15]
    backend.may_end.set()
    deadline = time.monotonic() + 5
    while encoding._turns and time.monotonic() < deadline:
        time.sleep(0.01)
    assert encode_in_time(backend, "other") == [5]


def num_encoding():
    return sum(thread.name == "encode" for thread in threading.enumerate())


def test_texts_that_come_at_once_leave_no_more_behind(backend):
    before = num_encoding()
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(encode_in_time, backend, "hang") for _ in range(12)]
    reasons = [str(call.exception()) for call in calls]
    assert num_encoding() - before == MAX_AT_ONCE
    assert sum("given up" in reason for reason in reasons) == MAX_AT_ONCE
    assert sum("still busy" in reason for reason in reasons) == 12 - MAX_AT_ONCE


def test_texts_wait_for_their_turn_and_are_no_fault(backend, monkeypatch):
    monkeypatch.setattr(encoding, "LIMIT_S", 60.0)
    with ThreadPoolExecutor(MAX_AT_ONCE + 8) as pool:
        long = [pool.submit(encode_in_time, backend, "hang") for _ in range(MAX_AT_ONCE)]
        while num_encoding() < MAX_AT_ONCE:
            time.sleep(0.01)
        short = [pool.submit(encode_in_time, backend, "other") for _ in range(8)]
        time.sleep(0.1)
        assert not any(call.done() for call in short)
        backend.may_end.set()
        assert [call.result(5) for call in long + short] == [[4]] * MAX_AT_ONCE + [[5]] * 8
    assert not encoding._turns


def test_a_copy_shares_the_turns_of_its_owner(backend):
    for _ in range(MAX_AT_ONCE):
        hang(backend)
    with pytest.raises(TokenizerFailedError, match="still busy"):
        encode_in_time(SlowBackend(), "other", owner=backend)


def test_the_tokenizer_for_typed_control_pieces_is_no_other_one(monkeypatch):
    monkeypatch.setattr(encoding, "LIMIT_S", 0.1)
    monkeypatch.setattr(encoding, "CHARACTER_LIMIT_S", 0.0)
    monkeypatch.setattr(encoding, "MAX_AT_ONCE", 1)
    tokenizer = splitting_by(r"x*x*\s\d")
    pieces = ControlPieces(tokenizer.backend_tokenizer)
    disguise = pieces.disguise_for([tokenizer.eos_token], "")
    with pytest.raises(TokenizerFailedError, match="given up"):
        pieces.encode("x" * 1_000, disguise)
    with pytest.raises(TokenizerFailedError, match="still busy"):
        pieces.encode("hello", None)


def test_a_turn_is_over_where_no_thread_can_be_started(backend, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(MAX_AT_ONCE + 1):
            with pytest.raises(RuntimeError, match="start new thread"):
                encode_in_time(backend, "other")
    assert encode_in_time(backend, "other") == [5]


def test_the_time_of_a_text_that_has_just_ended_is_asked_without_harm(backend, monkeypatch):
    call = encoding._Call(backend, "other", backend)
    call.take_turn()
    call.start()
    call.join()
    monkeypatch.setattr(call, "is_alive", lambda: True)  # as it was a moment ago
    deadline = time.monotonic() + 5
    while call.seconds() > 0 and time.monotonic() < deadline:  # until the system forgets it
        time.sleep(0.01)
    assert call.seconds() == 0.0
    assert not call.give_up()


def test_waiting_for_a_processor_costs_no_time(backend, monkeypatch):
    """A machine that is busy with other things gives nobody up."""
    encode_batch = backend.encode_batch_fast

    def wait(texts, add_special_tokens):
        time.sleep(0.4)
        return encode_batch(texts, add_special_tokens)

    monkeypatch.setattr(backend, "encode_batch_fast", wait)
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
