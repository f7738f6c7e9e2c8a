"""The live check beside a running engine: real sockets and loop, an engine without a model."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from engine.encoded import EncodedStartFailure
from engine.errors import EngineDeadError, LiveCheckError, NonFiniteLogitsError
from engine.process import check_pace, loop, part_reader
from engine.process.in_thread import running_engine
from engine.process.live_check import LiveCheckFailure, PartOutcome
from engine.process.loop import BuiltEngine
from engine.process.repetition_watch import MIN_REQUESTS, RUN_LENGTH
from engine.request import Terms
from engine.sampling_params import SamplingParams
from tests.engine.fake_engine import FakeEngine, expected_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from engine.outputs import StepOutput
    from engine.process.live_check import ComparePart
    from engine.request import SequenceRequest
    from engine.transport.client import EngineClient

FAILURE = LiveCheckFailure("layer 3 computes wrongly", EncodedStartFailure(b"without int4pack"))
SELDOM_S = 1000.0


class FakeCheck:
    """Notes when it is asked; fails from a moment on."""

    def __init__(self, num_parts: int = 10) -> None:
        self.num_parts = num_parts
        self.problem: str | None = None
        self.times: list[float] = []
        self.is_damaged = self.is_gone = self.is_full = False
        self.may_read = threading.Event()
        self.may_read.set()
        self.num_reads = 0
        self.threads: set[tuple[str, str]] = set()

    def read_next(self) -> ComparePart:
        self.num_reads += 1
        self.threads.add(("reads", threading.current_thread().name))
        self.may_read.wait()
        return self._compare

    def _compare(self) -> LiveCheckFailure | PartOutcome:
        self.threads.add(("compares", threading.current_thread().name))
        self.times.append(time.monotonic())
        if self.is_gone:
            self.problem = "model.safetensors is gone"
        if self.is_gone or self.is_full:
            return PartOutcome.SKIPPED
        return FAILURE if self.is_damaged else PartOutcome.PASSED


class RepeatingEngine(FakeEngine):
    """Answers everything with one token."""

    def _advance(self, running: Any) -> StepOutput:
        output = super()._advance(running)
        if hasattr(output, "token_id"):
            object.__setattr__(output, "token_id", 7)
        return output


@pytest.fixture
def _checks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but a sign of damage bring a check about, once the first one was made."""
    monkeypatch.setattr(check_pace, "IDLE_ROUND_S", 10 * SELDOM_S)
    monkeypatch.setattr(check_pace, "BUSY_SHARE", 1e-12)
    monkeypatch.setattr(check_pace, "LONGEST_REST_S", SELDOM_S)


@pytest.fixture
def _idles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_pace, "IDLE_AFTER_S", 0.0)
    monkeypatch.setattr(check_pace, "IDLE_ROUND_S", 0.1)


def run(
    test: Callable[[EngineClient], Coroutine[Any, Any, None]],
    check: FakeCheck | None,
    engine: FakeEngine | None = None,
) -> None:
    async def session() -> None:
        built = BuiltEngine(engine or FakeEngine(), b"", check)
        async with running_engine(lambda tell: built) as client:
            await test(client)

    asyncio.run(asyncio.wait_for(session(), 20))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def answer(client: EngineClient, num_tokens: int, caller: str = "") -> list[int]:
    params, terms = SamplingParams(max_tokens=num_tokens), Terms(caller=caller)
    stream = client.generate([1, 2], params, terms=terms)
    return [output.token_id async for output in stream]


@pytest.mark.usefixtures("_idles_at_once")
def test_an_idle_engine_is_checked_round_after_round_and_tells_how_far_it_came():
    check = FakeCheck()

    async def test(client: EngineClient) -> None:
        await until(lambda: (client.live_check or 0) and client.live_check.num_rounds >= 3)
        told = client.live_check
        assert told.num_checked >= 3 * told.num_layers == 30
        assert 0.09 < told.last_round_s < 5
        assert told.problem is None
        assert await answer(client, 5) == expected_tokens([1, 2], 5)

    run(test, check)


@pytest.mark.usefixtures("_idles_at_once")
def test_a_damaged_layer_ends_the_engine_with_what_the_next_one_may_do_without():
    check = FakeCheck()

    async def test(client: EngineClient) -> None:
        await until(lambda: len(check.times) > 15)
        check.is_damaged = True
        await until(lambda: client.death is not None)
        assert isinstance(client.death, LiveCheckError)
        assert str(client.death) == FAILURE.reason
        assert client.death.start_failure == FAILURE.start_failure
        with pytest.raises(EngineDeadError):
            await answer(client, 5)

    run(test, check)


def test_a_busy_engine_is_checked_between_steps_and_open_streams_learn_what_was_found(monkeypatch):
    monkeypatch.setattr(check_pace, "LONGEST_REST_S", 0.05)
    monkeypatch.setattr(check_pace, "BUSY_SHARE", 1e-12)
    check = FakeCheck()

    async def test(client: EngineClient) -> None:
        stream = client.generate([1, 2], SamplingParams(max_tokens=2000))
        await until(lambda: len(check.times) > 5)
        check.is_damaged = True
        with pytest.raises(LiveCheckError, match="layer 3"):
            async for _ in stream:
                pass

    run(test, check, FakeEngine(max_model_len=5000, step_s=0.002))


@pytest.mark.usefixtures("_checks_seldom")
def test_logits_that_are_no_numbers_have_a_full_round_made_at_once():
    def fails(request: SequenceRequest, token: int) -> NonFiniteLogitsError | None:
        return NonFiniteLogitsError("NaN") if request.caller == "nan" else None

    check = FakeCheck()

    async def test(client: EngineClient) -> None:
        await until(lambda: len(check.times) == 1)
        others = asyncio.create_task(answer(client, 40))
        with pytest.raises(NonFiniteLogitsError):
            await answer(client, 5, "nan")
        assert await others == expected_tokens([1, 2], 40)
        await until(lambda: len(check.times) == 1 + check.num_parts)

    run(test, check, FakeEngine(fails=fails))


@pytest.mark.usefixtures("_checks_seldom")
@pytest.mark.parametrize(("num_callers", "is_checked"), [(3, True), (1, False)])
def test_one_token_for_all_callers_has_a_full_round_made_at_once(num_callers, is_checked):
    check = FakeCheck()

    async def test(client: EngineClient) -> None:
        await until(lambda: len(check.times) == 1)
        for number in range(MIN_REQUESTS):
            caller = f"user {number % num_callers}"
            assert await answer(client, RUN_LENGTH, caller) == [7] * RUN_LENGTH
        if is_checked:
            await until(lambda: len(check.times) == 1 + check.num_parts)
        else:
            await asyncio.sleep(0.1)
            assert len(check.times) == 1

    run(test, check, RepeatingEngine())


@pytest.mark.usefixtures("_idles_at_once")
def test_files_that_are_gone_are_told_once_and_the_engine_goes_on():
    check = FakeCheck()

    async def test(client: EngineClient) -> None:
        await until(lambda: bool(check.times))
        check.is_gone = True
        await until(lambda: client.live_check is not None and client.live_check.problem is not None)
        assert client.live_check.problem == "model.safetensors is gone"
        num_checked = len(check.times)
        assert await answer(client, 5) == expected_tokens([1, 2], 5)
        await asyncio.sleep(0.1)
        assert len(check.times) == num_checked

    run(test, check)


@pytest.mark.usefixtures("_idles_at_once")
def test_an_engine_whose_storage_stalls_answers_steps_and_ends(monkeypatch):
    monkeypatch.setattr(part_reader, "CLOSE_S", 0.05)
    monkeypatch.setattr(loop, "HEARTBEAT_S", 0.01)
    check = FakeCheck()
    check.may_read.clear()

    async def test(client: EngineClient) -> None:
        await until(lambda: check.num_reads == 1)
        assert await answer(client, 5) == expected_tokens([1, 2], 5)
        await asyncio.sleep(0.2)
        assert client.step_s < 0.1
        assert (check.num_reads, check.times) == (1, [])
        check.may_read.set()
        await until(lambda: len(check.times) > 3)
        assert check.threads == {("reads", "live-check"), ("compares", "engine")}
        check.may_read.clear()
        num_reads = check.num_reads
        await until(lambda: check.num_reads > num_reads)

    began = time.monotonic()
    run(test, check)
    assert time.monotonic() - began < 10
    check.may_read.set()


@pytest.mark.usefixtures("_idles_at_once")
def test_parts_without_memory_are_counted_apart_from_those_that_passed():
    check = FakeCheck()
    check.is_full = True

    async def test(client: EngineClient) -> None:
        await until(lambda: client.live_check is not None and client.live_check.num_rounds == 1)
        assert (client.live_check.num_checked, client.live_check.num_skipped) == (0, 10)
        check.is_full = False
        await until(lambda: client.live_check.num_rounds >= 3)
        assert client.live_check.num_checked >= 10

    run(test, check)


@pytest.mark.usefixtures("_idles_at_once")
def test_slow_files_are_read_seldom():
    class Slow(FakeCheck):
        def read_next(self) -> ComparePart:
            time.sleep(0.1)
            return super().read_next()

    check = Slow()

    async def test(client: EngineClient) -> None:
        await until(lambda: len(check.times) == 1)
        await asyncio.sleep(0.3)
        assert check.num_reads == 1  # 0.1 s at 15 % are 0.67 s

    run(test, check)


def test_an_engine_without_a_check_sleeps_until_it_is_asked():
    async def test(client: EngineClient) -> None:
        assert await answer(client, 5) == expected_tokens([1, 2], 5)
        assert client.live_check is None

    run(test, None)
