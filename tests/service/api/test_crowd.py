"""Work that can wait begins when a turn of the event loop has refused nobody."""

from __future__ import annotations

import asyncio

import pytest

from service.api import crowd as crowds
from service.api.crowd import Crowd
from tests.in_event_loop import in_event_loop


@in_event_loop
async def test_without_a_crowd_nobody_waits():
    async with asyncio.timeout(1):
        crowd = Crowd()
        waiting = asyncio.ensure_future(crowd.wait())
        await asyncio.sleep(0)
        assert waiting.done()


@in_event_loop
async def test_work_waits_for_a_turn_without_refusals(monkeypatch):
    monkeypatch.setattr(crowds, "MAX_WAIT_S", 60)
    crowd = Crowd()
    crowd.note_refusal()
    waiting = asyncio.ensure_future(crowd.wait())
    for _ in range(10):
        crowd.note_refusal()
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


@in_event_loop
async def test_one_refusal_a_turn_is_a_crowd_from_the_first_on(monkeypatch):
    monkeypatch.setattr(crowds, "MAX_WAIT_S", 60)
    crowd = Crowd()
    over = []
    for _ in range(10):
        crowd.note_refusal()
        crowd.call(lambda: over.append(True))
        await asyncio.sleep(0)
        assert not over
    await crowd.wait()
    assert len(over) == 10


@in_event_loop
async def test_a_crowd_without_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(crowds, "MAX_WAIT_S", 0.05)
    crowd = Crowd()
    crowd.note_refusal()
    waiting = asyncio.ensure_future(crowd.wait())
    began = asyncio.get_running_loop().time()
    while not waiting.done():
        crowd.note_refusal()
        await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - began < 5


@in_event_loop
async def test_what_is_to_be_done_at_the_end_is_done_once():
    crowd, done = Crowd(), []
    crowd.note_refusal()
    crowd.call(lambda: done.append(1))
    assert not done
    await crowd.wait()
    await asyncio.sleep(0)
    crowd.note_refusal()
    await crowd.wait()
    assert done == [1]


@in_event_loop
async def test_there_must_be_a_crowd_whose_end_is_asked_for():
    with pytest.raises(RuntimeError, match="no crowd"):
        Crowd().call(lambda: None)


@in_event_loop
async def test_whoever_leaves_takes_nobody_along():
    crowd = Crowd()
    crowd.note_refusal()
    leaving, staying = (asyncio.ensure_future(crowd.wait()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait_for(staying, 1)
