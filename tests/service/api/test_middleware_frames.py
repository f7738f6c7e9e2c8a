"""What a refused request held is let go of without the help of Python's garbage collector."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from service.api.middleware import let_go_of_frames
from service.server.freed_memory import FreedMemory
from tests.service.fakes import FakeEngine, running_server, says, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_VALUES = 70_003
VALUES = b"[" + b"0," * (NUM_VALUES - 1) + b"0]"
MANY_TURNS = [{"role": "user", "content": "x"}] * 20_003


@pytest.fixture
def without_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(FreedMemory, "note", lambda _memory: None)  # which collects, too
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def num_lists(length: int) -> int:
    return sum(type(one) is list and len(one) == length for one in gc.get_objects())


@pytest.mark.parametrize(
    ("path", "body", "length", "status"),
    [
        ("completions", b'{"seed": 1, "seed": 2, "prompt": ' + VALUES + b"}", NUM_VALUES, 400),
        ("completions", b'{"prompt": ' + VALUES + b', "top_p": 7}', NUM_VALUES, 400),
        (
            "chat/completions",
            json.dumps({"messages": MANY_TURNS}).encode(),
            len(MANY_TURNS),
            400,
        ),
    ],
    ids=["named twice", "a value that is wrong", "more than fits"],
)
def test_a_refused_body_is_let_go_of(without_collector, tiny_tokenizer, path, body, length, status):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer) as server:
        before = num_lists(length)
        answer = httpx.post(
            f"{server.url}/v1/{path}", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status, answer.text
        wait_until(lambda: num_lists(length) == before)


def test_errors_that_lead_to_each_other_are_let_go_of():
    first, second = ValueError("first"), ExceptionGroup("second", [KeyError("third")])
    first.__cause__, second.__context__ = second, first
    for error in (first, second, second.exceptions[0]):
        with pytest.raises(type(error)):
            raise error
        assert error.__traceback__ is not None
    let_go_of_frames(first)
    assert [first.__traceback__, second.__traceback__] == [None, None]
    assert second.exceptions[0].__traceback__ is None
