"""One variant's life: loaded, restarted, drained, unloaded. No processes, a few fakes."""

from __future__ import annotations

import asyncio
import errno
import time
from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineDeadError, EngineStartError, LiveCheckError
from engine.transport.wire import Progress
from loaders.errors import CheckpointError
from loaders.reports.self_test import Check, SelfTestReport
from service.errors import UnavailableError, VariantStateError
from service.variants import restarts
from service.variants import variant as variant_module
from service.variants.variant import ServedVariant, VariantRules, VariantState
from service.worker_protocol.load_attempt import FailureKind, StartFailure
from tests.service.fakes import ByteTokenizer, FakeEngine, FakeHandle, says, served_model

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from service.serving.served_model import ServedModel

pytestmark = pytest.mark.alone

TOKENIZER = ByteTokenizer()


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)


class FakeSource:
    """Starts fake engines; `failures` are met by the first so many, one each."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.handles: list[FakeHandle] = []
        self.may_serve = asyncio.Event()
        self.may_serve.set()
        self.is_closed = False
        self.variant = "owner/name"
        self.degraded = None
        self.suspicions = ()
        self.num_lives = 0

    def reset(self) -> None:
        self.num_lives += 1

    async def start(self, on_progress: Callable[[Progress], None]) -> FakeHandle:
        on_progress(Progress("pretending", 7.0))
        self.handles.append(FakeHandle(FakeEngine(says(TOKENIZER, "yes"))))
        return self.handles[-1]

    async def wait_ready(self, handle: FakeHandle) -> ServedModel:
        await self.may_serve.wait()
        if self.failures:
            raise self.failures.pop(0)
        return served_model(handle.engine, TOKENIZER)

    def fall_back(self, error: LiveCheckError) -> str:
        return f"{error}; trying another kernel"

    async def close(self) -> None:
        self.is_closed = True


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def until_it_is(variant: ServedVariant, state: VariantState) -> None:
    await until(lambda: variant.state is state)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_want_of_descriptors_while_the_texts_are_read_is_tried_again():
    async def test() -> None:
        source = FakeSource(OSError(errno.EMFILE, "Too many open files"))
        variant = ServedVariant("m", source, VariantRules(max_restarts=2))
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        assert len(source.handles) == 2
        assert "Too many open files" in str(variant.status.reason)
        await variant.unload(drain_limit_s=1, for_good=True)

    run(test())


def test_loads_and_serves_and_is_unloaded():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        with pytest.raises(UnavailableError, match="m is unloaded"):
            variant.require_served()
        source.may_serve.clear()
        variant.load()
        await until(lambda: variant.status.phase == "pretending")
        assert variant.status.percent == 7
        with pytest.raises(UnavailableError, match=r"m is loading \(pretending\)"):
            variant.require_served()
        source.may_serve.set()
        await until_it_is(variant, VariantState.SERVING)
        assert variant.require_served().name
        assert variant.status.phase is None
        await variant.unload(drain_limit_s=1, for_good=True)
        assert variant.state is VariantState.UNLOADED
        assert source.handles[0].is_stopped.is_set()
        assert source.is_closed
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        assert len(source.handles) == 2
        await variant.unload(drain_limit_s=0, for_good=True)

    run(test())


def test_an_engine_that_dies_while_it_is_drained_is_ended_whole():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        handle = source.handles[0]
        stop, is_ended = handle.stop, asyncio.Event()

        async def slow_stop() -> None:
            await asyncio.sleep(0.05)
            await stop()
            is_ended.set()

        handle.stop = slow_stop
        with variant.in_use():
            unloading = variant.unload(drain_limit_s=5, for_good=True)
            await until(lambda: variant.state is not VariantState.SERVING)
            handle.die("SIGKILL")
            await unloading
        assert is_ended.is_set()
        assert variant.state is VariantState.UNLOADED
        assert variant.status.pid is None

    run(test())


def test_dead_engine_is_replaced():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        source.handles[0].die("SIGKILL")
        assert variant.state is VariantState.RESTARTING
        await until_it_is(variant, VariantState.SERVING)
        assert variant.require_served().engine is source.handles[1].engine
        assert variant.status.num_restarts == 1
        assert variant.status.reason == "SIGKILL"
        await variant.unload(drain_limit_s=0, for_good=True)

    run(test())


def test_engine_is_given_up_after_so_many_restarts():
    async def test() -> None:
        source = FakeSource(*(EngineDeadError(f"death {n}") for n in range(9)))
        variant = ServedVariant("m", source, VariantRules(max_restarts=2))
        variant.load()
        await until_it_is(variant, VariantState.FAILED)
        assert len(source.handles) == 3
        assert variant.status.reason == "death 2; given up after 2 restarts"
        assert source.is_closed
        with pytest.raises(UnavailableError, match="m has failed"):
            variant.require_served()

    run(test())


def test_time_of_health_makes_up_for_deaths_before(monkeypatch):
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules(max_restarts=1))
        variant.load()
        for number in range(4):
            await until(lambda: len(source.handles) == number + 1)  # noqa: B023
            await until_it_is(variant, VariantState.SERVING)
            source.handles[-1].die("SIGKILL")
        await until_it_is(variant, VariantState.SERVING)
        monkeypatch.setattr(restarts, "HEALTHY_S", 60.0)
        source.handles[-1].die("SIGKILL")
        await until_it_is(variant, VariantState.FAILED)

    monkeypatch.setattr(restarts, "HEALTHY_S", 0.0)
    run(test())


@pytest.mark.parametrize(
    "error", [EngineStartError("no such branch"), CheckpointError("no tokenizer")]
)
def test_what_another_try_would_not_mend_fails_at_once(error):
    async def test() -> None:
        source = FakeSource(error)
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.FAILED)
        assert variant.status.reason == str(error)
        assert len(source.handles) == 1

    run(test())


def test_a_failed_self_test_stays_to_be_read_until_the_variant_is_unloaded():
    report = SelfTestReport(False, (Check("logits", False, "NaN"),), "int4pack", 0.1, 7)

    async def test() -> None:
        error = EngineStartError(
            str(report),
            start_failure=StartFailure(FailureKind.SELF_TEST, self_test=report).encode(),
        )
        variant = ServedVariant("m", FakeSource(error), VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.FAILED)
        assert variant.status.self_test == report
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        assert variant.status.self_test.passed
        await variant.unload(drain_limit_s=0, for_good=True)
        assert variant.status.self_test is None

    run(test())


def test_failed_restart_is_tried_again():
    """A device may need a moment to get over the one before: its memory, for one."""

    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        source.failures = [EngineStartError("out of memory")]
        source.handles[0].die("SIGKILL")
        await until(lambda: len(source.handles) == 3)
        await until_it_is(variant, VariantState.SERVING)
        await variant.unload(drain_limit_s=0, for_good=True)

    run(test())


def test_variant_does_not_serve_while_its_dead_engine_is_cleared_away():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        (handle,) = source.handles
        may_stop, stop = asyncio.Event(), handle.stop

        async def stop_late() -> None:
            await may_stop.wait()
            await stop()

        handle.stop = stop_late
        handle.die("SIGKILL")
        await until(lambda: variant.served is None)
        assert variant.state is VariantState.RESTARTING
        may_stop.set()
        await until_it_is(variant, VariantState.SERVING)
        await variant.unload(drain_limit_s=0, for_good=True)

    run(test())


def test_fault_of_our_own_fails_the_variant():
    async def test() -> None:
        source = FakeSource(ZeroDivisionError("x"))
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.FAILED)
        assert source.is_closed
        assert variant.status.reason == "a fault of the server's own: ZeroDivisionError"

    run(test())


def test_unloading_waits_for_open_requests_but_not_for_ever():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        with variant.in_use():
            unloading = variant.unload(drain_limit_s=5, for_good=True)
            assert variant.unload(drain_limit_s=5, for_good=True) is unloading
            await asyncio.sleep(0.05)
            assert variant.state is VariantState.UNLOADING
            assert not source.handles[0].is_stopped.is_set()
            with pytest.raises(UnavailableError, match="unloading"):
                variant.require_served()
        await unloading
        assert variant.state is VariantState.UNLOADED
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        with variant.in_use():
            await variant.unload(drain_limit_s=0.02, for_good=True)
        assert variant.state is VariantState.UNLOADED

    run(test())


def test_drained_variant_stays_loaded_and_takes_work_again():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        variant.drain()
        with pytest.raises(UnavailableError, match="draining"):
            variant.require_served()
        source.handles[0].die("SIGKILL")
        await until(lambda: len(source.handles) == 2)
        await until_it_is(variant, VariantState.DRAINING)
        variant.load()
        assert variant.require_served()
        await variant.unload(drain_limit_s=0, for_good=True)

    run(test())


def test_idle_variant_is_unloaded_and_one_in_use_is_not():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules(idle_unload_s=0.1, is_on_demand=True))
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        with variant.in_use():
            await asyncio.sleep(0.3)
            assert variant.state is VariantState.SERVING
        await until_it_is(variant, VariantState.UNLOADED)
        assert variant.waits_for_demand
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        await variant.unload(drain_limit_s=0, for_good=True)
        assert not variant.waits_for_demand

    run(test())


def test_variant_that_still_loads_can_be_unloaded():
    async def test() -> None:
        source = FakeSource()
        source.may_serve.clear()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until(lambda: len(source.handles) == 1)
        await variant.unload(drain_limit_s=5, for_good=True)
        assert variant.state is VariantState.UNLOADED
        assert source.handles[0].is_stopped.is_set()

    run(test())


def test_variant_on_demand_that_failed_is_tried_again_after_a_while(monkeypatch):
    async def test() -> None:
        monkeypatch.setattr(variant_module, "FAILED_REST_S", 0.1)
        source = FakeSource(CheckpointError("no memory is left"))
        variant = ServedVariant("m", source, VariantRules(is_on_demand=True))
        assert variant.waits_for_demand
        variant.load()
        await until_it_is(variant, VariantState.FAILED)
        assert not variant.waits_for_demand
        with pytest.raises(UnavailableError, match="m has failed"):
            variant.require_served()
        await until(lambda: variant.waits_for_demand)
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        await variant.unload(drain_limit_s=1, for_good=True)
        assert not variant.waits_for_demand

    run(test())


def test_variant_is_not_loaded_while_it_is_being_unloaded():
    async def test() -> None:
        variant = ServedVariant("m", FakeSource(), VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        with variant.in_use():
            unloading = variant.unload(drain_limit_s=5, for_good=True)
            with pytest.raises(VariantStateError, match="being unloaded"):
                variant.load()
        await unloading
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        await variant.unload(drain_limit_s=1, for_good=True)

    run(test())


def test_each_load_begins_anew_but_a_restart_does_not():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        source.handles[0].die("it died")
        await until(lambda: len(source.handles) == 2)
        assert source.num_lives == 1
        await variant.unload(drain_limit_s=0, for_good=True)
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        assert source.num_lives == 2
        await variant.unload(drain_limit_s=0, for_good=True)

    run(test())


def test_an_engine_that_finds_a_layer_wrong_is_replaced_and_says_what_is_given_up():
    async def test() -> None:
        source = FakeSource()
        variant = ServedVariant("m", source, VariantRules())
        variant.load()
        await until_it_is(variant, VariantState.SERVING)
        report = SelfTestReport(
            passed=False,
            checks=(Check("layer 3", False, "off by 1", 9.0, "int4pack"),),
            backend="int4pack",
            seconds=0.1,
            finished=1,
        )
        failure = StartFailure(FailureKind.LIVE_CHECK, ("int4pack",), report).encode()
        source.may_serve.clear()
        source.handles[0].die("layer 3", LiveCheckError("layer 3", start_failure=failure))
        await until(lambda: len(source.handles) == 2)
        assert variant.state is VariantState.RESTARTING
        assert variant.status.reason == "layer 3; trying another kernel"
        assert variant.status.self_test == report
        source.may_serve.set()
        await until_it_is(variant, VariantState.SERVING)
        assert variant.status.self_test.passed
        assert variant.status.num_restarts == 1
        await variant.unload(drain_limit_s=0, for_good=True)

    run(test())
