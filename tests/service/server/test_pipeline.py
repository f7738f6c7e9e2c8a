"""How much may wait on one connection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from service.server.pipeline import MAX_BODY, MAX_REQUESTS, MAX_SIZE, Pipeline
from service.server.refusals import Refusal
from service.server.request_head import read_head

if TYPE_CHECKING:
    from service.server.response_cycle import ResponseCycle


def cycle() -> ResponseCycle:
    return cast("Any", SimpleNamespace(body=bytearray()))


def head(value: bytes = b"x"):
    return read_head(b"GET", b"/", "1.1", [(b"host", b"x"), (b"a", value)])


def test_requests_are_taken_in_their_order():
    pipeline, cycles = Pipeline(), [cycle() for _ in range(3)]
    for one in cycles:
        pipeline.add(one, head())
    pipeline.drop_last()
    assert [pipeline.take(), pipeline.take()] == cycles[:2]
    assert not len(pipeline)


def test_small_ones_may_be_many_but_not_more():
    pipeline = Pipeline()
    for _ in range(MAX_REQUESTS):
        pipeline.add(cycle(), head())
    with pytest.raises(Refusal, match=f"more than {MAX_REQUESTS} requests"):
        pipeline.add(cycle(), head())
    assert len(pipeline) == MAX_REQUESTS


def test_large_heads_and_bodies_share_a_bound():
    pipeline = Pipeline()
    for _ in range(2):
        pipeline.add(cycle(), head(b"a" * 50_000))
    waiting = cycle()
    pipeline.add(waiting, head())
    pipeline.add_body(waiting, b"a" * 50_000)
    with pytest.raises(Refusal, match=f"more than {MAX_SIZE // 1024} KiB"):
        pipeline.add(cycle(), head(b"a" * 120_000))
    assert len(pipeline) == 3
    pipeline.take()
    pipeline.add(cycle(), head(b"a" * 120_000))


def test_what_was_taken_or_dropped_takes_no_room():
    pipeline = Pipeline()
    for _ in range(100):
        for _ in range(2):
            waiting = cycle()
            pipeline.add(waiting, head(b"a" * 50_000))
            pipeline.add_body(waiting, b"a" * 50_000)
        pipeline.drop_last()
        pipeline.take()


def test_one_that_was_forgotten_with_all_others_may_be_dropped():
    pipeline = Pipeline()
    pipeline.add(cycle(), head())
    pipeline.clear()
    pipeline.drop_last()
    assert not len(pipeline)


def test_one_body_has_a_bound_of_its_own():
    pipeline, waiting = Pipeline(), cycle()
    pipeline.add(waiting, head())
    pipeline.add_body(waiting, b"a" * MAX_BODY)
    with pytest.raises(Refusal, match="large body"):
        pipeline.add_body(waiting, b"a")
