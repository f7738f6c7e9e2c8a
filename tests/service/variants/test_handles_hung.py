"""When an engine counts as hung, and how seldom that is looked for. No engines, no real time."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineDeadError
from service.settings import WorkerSettings
from service.variants import handles
from service.variants.handles import CONFIRM_S, STOP_LIMIT_S, until_hung
from tests.replaced import replace_within

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

SETTINGS = WorkerSettings(step_deadline_s=60, load_deadline_s=1800)
HEARTBEAT_S = 0.5


class FastLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes as soon as nobody has anything to do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._select = self._selector.select
        self._selector.select = self._pass

    def time(self) -> float:
        return getattr(self, "now", 0.0)

    def _pass(self, timeout: float | None) -> list[Any]:
        if timeout:
            self.now += timeout
        return self._select(0)


class FakeClient:
    """What is known of an engine; counts how often it is looked at."""

    def __init__(self, *, is_alive: bool = True) -> None:
        self.is_alive = is_alive
        self.step_s = 0.0
        self.death: EngineDeadError | None = None
        self.num_looks = 0
        self.last_progress = self._last_heard = asyncio.get_running_loop().time()
        self._has_died = asyncio.Event()

    @property
    def last_heard(self) -> float:
        self.num_looks += 1
        return self._last_heard

    async def died(self) -> None:
        await self._has_died.wait()

    def die(self, how: str) -> None:
        self.death = EngineDeadError(how)
        self._has_died.set()

    async def send_heartbeats(self, step_of: Callable[[float], float] = lambda _: 0.0) -> None:
        """step_of: for how long the step had been running at a time."""
        loop = asyncio.get_running_loop()
        while True:
            self._last_heard = loop.time()
            self.step_s = step_of(loop.time())
            await asyncio.sleep(HEARTBEAT_S)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Coroutine[Any, Any, None]], None]:
    loop = FastLoop()
    replace_within(monkeypatch, handles, "time", monotonic=loop.time)

    def run(test: Coroutine[Any, Any, None]) -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(test)

    return run


async def hung_after(client: FakeClient) -> tuple[str, float]:
    began = asyncio.get_running_loop().time()
    found = await until_hung(client, SETTINGS)
    return found, asyncio.get_running_loop().time() - began


def test_engine_that_is_not_heard_of_hangs(run):
    async def test() -> None:
        found, after_s = await hung_after(FakeClient())
        assert "not heard of for 60 s" in found
        assert 60 < after_s <= 60 + 2 * CONFIRM_S

    run(test())


def test_step_that_takes_too_long_hangs_though_the_process_lives(run):
    async def test() -> None:
        client = FakeClient()
        began = asyncio.get_running_loop().time() + 100

        def step_s(now: float) -> float:
            return max(0.0, math.floor((now - began) / HEARTBEAT_S) * HEARTBEAT_S)

        hearts = asyncio.create_task(client.send_heartbeats(step_s))
        found, after_s = await hung_after(client)
        assert "its step took longer than 60 s" in found
        assert 160 < after_s <= 160 + 4 * CONFIRM_S
        hearts.cancel()

    run(test())


def test_loading_without_progress_hangs(run):
    async def test() -> None:
        client = FakeClient(is_alive=False)
        hearts = asyncio.create_task(client.send_heartbeats())
        found, after_s = await hung_after(client)
        assert "its loading made no progress for 1800 s" in found
        assert 1800 < after_s <= 1800 + 3 * CONFIRM_S
        hearts.cancel()

    run(test())


def test_healthy_engine_is_looked_at_about_once_in_the_time_of_a_step(run):
    async def test() -> None:
        client = FakeClient()
        hearts = asyncio.create_task(client.send_heartbeats())
        watch = asyncio.create_task(until_hung(client, SETTINGS))
        await asyncio.sleep(3600)
        assert not watch.done()
        assert client.num_looks <= 2 * 3600 / 59
        for task in (hearts, watch):
            task.cancel()

    run(test())


def test_death_is_heard_at_once_and_its_end_waited_for(run):
    async def test() -> None:
        client = FakeClient()
        asyncio.get_running_loop().call_later(7, client.die, "the engine died of ValueError")
        found, after_s = await hung_after(client)
        assert found == "the engine died of ValueError"
        assert after_s == pytest.approx(7 + STOP_LIMIT_S)

    run(test())


def test_process_that_stood_still_itself_suspects_nobody(run):
    async def test() -> None:
        client = FakeClient()
        watch = asyncio.create_task(until_hung(client, SETTINGS))
        await asyncio.sleep(1)
        asyncio.get_running_loop().now += 600  # as a machine that was asleep
        await asyncio.sleep(CONFIRM_S / 5)  # and then the first heartbeat comes
        hearts = asyncio.create_task(client.send_heartbeats())
        await asyncio.sleep(300)
        assert not watch.done()
        for task in (hearts, watch):
            task.cancel()

    run(test())
