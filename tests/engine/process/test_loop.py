"""What the loop does beside stepping; how its messages travel is tested with the client."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from engine.process import loop, rest_memory
from engine.process.in_thread import running_engine
from engine.process.loop import BuiltEngine
from engine.process.rest_memory import RestMemory
from engine.sampling_params import SamplingParams
from tests.engine.fake_engine import FakeEngine, expected_tokens


class FakeKeeper:
    def __init__(self) -> None:
        self.steps: list[float] = []

    def note_step(self, step_s: float) -> None:
        self.steps.append(step_s)


class Halver:
    """Gives one of two threads up after the last step."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def note_step(self, step_s: float) -> None:
        if not self._engine.has_work:
            self._engine.num_threads = 1


def test_the_last_report_says_how_many_threads_there_are_now():
    async def answer() -> int:
        engine = FakeEngine()
        built = BuiltEngine(engine, b"", threads=Halver(engine))
        async with running_engine(lambda _: built) as client:
            async for _ in client.generate([5, 6], SamplingParams(max_tokens=4)):
                pass
            return client.statistics.num_threads

    assert asyncio.run(asyncio.wait_for(answer(), 20)) == 1


@pytest.mark.parametrize("keeper", [FakeKeeper(), None])
def test_whoever_keeps_the_threads_hears_of_every_step(keeper):
    async def answer() -> list[int]:
        built = BuiltEngine(FakeEngine(), b"", threads=keeper)
        async with running_engine(lambda _: built) as client:
            stream = client.generate([5, 6], SamplingParams(max_tokens=4))
            return [output.token_id async for output in stream]

    assert asyncio.run(asyncio.wait_for(answer(), 20)) == expected_tokens([5, 6], 4)
    if keeper is not None:
        assert len(keeper.steps) >= 4
        assert all(0 <= step_s < 20 for step_s in keeper.steps)


def test_memory_is_given_back_once_after_the_last_answer_and_the_next_is_answered(monkeypatch):
    given: list[float] = []
    monkeypatch.setattr(rest_memory, "REST_S", 0.05)
    monkeypatch.setattr(loop, "RestMemory", partial(RestMemory, lambda: given.append(1.0)))

    async def answer() -> None:
        async with running_engine(lambda _: BuiltEngine(FakeEngine(), b"")) as client:
            for num_answered in (1, 2):
                async for _ in client.generate([5, 6], SamplingParams(max_tokens=4)):
                    assert len(given) == num_answered - 1
                while len(given) < num_answered:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)

    asyncio.run(asyncio.wait_for(answer(), 20))
    assert len(given) == 2
