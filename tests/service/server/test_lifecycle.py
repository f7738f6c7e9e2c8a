"""The phases of the process."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.errors import UnavailableError
from service.server.lifecycle import Lifecycle, Phase
from tests.service.fakes import ByteTokenizer, FakeEngine, FakeModels, says, served_model


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(says(ByteTokenizer(), "yes"))


@pytest.fixture
def lifecycle(engine: FakeEngine) -> Lifecycle:
    return Lifecycle(FakeModels(served_model(engine, ByteTokenizer())))


def test_phase_is_that_of_the_models_until_the_process_drains(lifecycle, engine):
    assert Lifecycle(FakeModels(None)).phase is Phase.LOADING
    assert lifecycle.phase is Phase.SERVING
    lifecycle.require_open()
    lifecycle.begin_draining()
    assert lifecycle.phase is Phase.DRAINING
    with pytest.raises(UnavailableError, match="draining"):
        lifecycle.require_open()


def test_models_without_hope_are_a_failure(lifecycle, engine):
    assert not lifecycle.is_hopeless
    engine.is_alive = False
    assert lifecycle.phase is Phase.FAILED
    assert lifecycle.is_hopeless


def test_open_requests_are_counted_also_when_they_fail(lifecycle):
    with lifecycle.request():
        assert lifecycle.num_open_requests == 1
        with contextlib.suppress(ZeroDivisionError), lifecycle.request():
            assert lifecycle.num_open_requests == 2
            raise ZeroDivisionError
        assert lifecycle.num_open_requests == 1
    assert lifecycle.num_open_requests == 0


def test_end_is_told_to_whoever_waits_for_it(lifecycle, engine):
    async def test() -> None:
        ending = asyncio.create_task(lifecycle.until_ending())
        await asyncio.sleep(0)
        assert not ending.done()
        lifecycle.begin_draining()
        await ending
        models = FakeModels(served_model(engine, ByteTokenizer()))
        ending = asyncio.create_task(Lifecycle(models).until_ending())
        await asyncio.sleep(0)
        engine.is_alive = False
        models.changes.announce()
        await ending

    asyncio.run(asyncio.wait_for(test(), 10))


def test_last_open_request_ends_the_wait_for_answers(lifecycle):
    async def test() -> None:
        with lifecycle.request():
            assert not await lifecycle.until_answered(limit_s=0.01)
            with lifecycle.request():
                waiting = asyncio.create_task(lifecycle.until_answered(limit_s=60))
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not waiting.done()
        assert await waiting

    asyncio.run(asyncio.wait_for(test(), 10))
