from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from engine.client import EngineClient, TokenStream
from engine.core import Engine
from engine.errors import EngineDeadError, InvalidTokenError, NonFiniteLogitsError
from engine.outputs import FinishReason
from engine.sampling_params import SamplingParams
from tests.engine.fake_runner import FakeRunner, Model, config, request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

PATIENCE_S = 20


def expected_tokens(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    return Model().answer(request(0, prompt, SamplingParams(max_tokens=max_tokens)))


class Gate:
    """Lets the engine's thread launch one step at a time."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, batch: object) -> None:
        if not self._is_open:
            assert self._allowed.acquire(timeout=PATIENCE_S)

    def let(self, num_steps: int) -> None:
        self._allowed.release(num_steps)

    def open(self) -> None:
        self._is_open = True
        self._allowed.release()


@contextmanager
def running_client(runner: FakeRunner | None = None, **sizes: int) -> Iterator[EngineClient]:
    runner = runner or FakeRunner(config(**sizes))
    client = EngineClient(Engine.with_runner(runner, runner.config))
    client.start()
    try:
        yield client
    finally:
        if isinstance(runner.before_launch, Gate):
            runner.before_launch.open()
        client.stop()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def check_idle(client: EngineClient) -> None:
    """Ask for this once the client has stopped: the engine is its thread's until then."""
    engine = client._engine
    while engine.has_work:
        engine.step()
    engine.scheduler.check()
    blocks = engine.scheduler.block_manager
    assert blocks.num_free_blocks == blocks.num_blocks


async def collect(stream: TokenStream) -> list[int]:
    return [output.token_id async for output in stream]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE_S))


def test_a_stream_gives_every_token_and_then_the_reason():
    async def test() -> None:
        stream = client.generate([1, 2], SamplingParams(max_tokens=5))
        outputs = [output async for output in stream]
        assert [o.token_id for o in outputs] == expected_tokens((1, 2), 5)
        assert [o.finish_reason for o in outputs] == [None] * 4 + [FinishReason.LENGTH]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    with running_client() as client:
        run(test())
    check_idle(client)


def test_many_streams_each_get_their_own_tokens():
    async def test() -> None:
        prompts = [tuple(range(1, length)) for length in range(2, 22)]
        streams = [client.generate(p, SamplingParams(max_tokens=len(p))) for p in prompts]
        got = await asyncio.gather(*map(collect, streams))
        assert got == [expected_tokens(p, len(p)) for p in prompts]

    with running_client() as client:
        run(test())
    check_idle(client)


def test_a_step_wakes_each_event_loop_once():
    async def test() -> None:
        loop = asyncio.get_running_loop()
        wakes = 0
        original = loop.call_soon_threadsafe

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return original(*args, **kwargs)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
        params = SamplingParams(max_tokens=10)
        streams = [client.generate([1], params) for _ in range(4)]
        gate.open()
        await asyncio.gather(*map(collect, streams))
        assert 10 <= wakes <= 13  # one a step; the four may not begin in the same one

    gate = Gate()
    with running_client(FakeRunner(config(), before_launch=gate)) as client:
        run(test())


def test_streams_may_be_read_in_several_event_loops():
    results: list[list[int]] = []

    async def test() -> None:
        results.append(await collect(client.generate([1, 2], SamplingParams(max_tokens=30))))

    with running_client() as client:
        threads = [threading.Thread(target=run, args=(test(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert results == [expected_tokens((1, 2), 30)] * 3


def test_bad_requests_are_refused_before_anything_is_submitted():
    async def test() -> None:
        with pytest.raises(InvalidTokenError):
            client.generate([10**6], SamplingParams(max_tokens=1))

    with running_client() as client:
        run(test())
    check_idle(client)


def test_leaving_early_frees_the_blocks_within_a_step():
    """The launched step is still collected; after it nothing of the sequence is left."""

    async def test() -> None:
        async with aclosing(client.generate([1], SamplingParams(max_tokens=60))) as stream:
            gate.let(2)
            await anext(stream)
        blocks = client._engine.scheduler.block_manager
        assert blocks.num_free_blocks < blocks.num_blocks
        await until(lambda: len(runner.batches) == 2)
        gate.let(1)  # the step that was about to launch when the stream was closed
        await until(lambda: blocks.num_free_blocks == blocks.num_blocks)
        assert len(runner.batches) <= 3

    gate = Gate()
    runner = FakeRunner(config(), before_launch=gate)
    with running_client(runner) as client:
        run(test())
    check_idle(client)


def test_a_stream_that_was_never_read_can_be_closed():
    async def test() -> None:
        stream = client.generate([1], SamplingParams(max_tokens=60))
        await stream.aclose()
        await stream.aclose()
        gate.open()
        await until(lambda: not client._engine.has_work)
        assert await collect(stream) == []
        assert len(runner.batches) <= 3

    gate = Gate()
    runner = FakeRunner(config(), before_launch=gate)
    with running_client(runner) as client:
        run(test())
    check_idle(client)


def test_cancelling_the_reader_aborts_the_sequence():
    async def test() -> None:
        stream = client.generate([1], SamplingParams(max_tokens=60))
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0.01)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        gate.open()
        await until(lambda: not client._engine.has_work)
        assert len(runner.batches) < 60

    gate = Gate()
    runner = FakeRunner(config(), before_launch=gate)
    with running_client(runner) as client:
        run(test())
    check_idle(client)


def test_a_stream_that_nobody_holds_is_aborted():
    async def test() -> None:
        stream = client.generate([1], SamplingParams(max_tokens=60))
        del stream
        gc.collect()
        gate.open()
        await until(lambda: len(runner.batches) > 0 and not client._engine.has_work)
        assert len(runner.batches) < 60

    gate = Gate()
    runner = FakeRunner(config(), before_launch=gate)
    with running_client(runner) as client:
        run(test())
    check_idle(client)


def test_a_sequence_aborted_from_elsewhere_ends_its_stream():
    async def test() -> None:
        stream = client.generate([1], SamplingParams(max_tokens=60))
        reader = asyncio.create_task(collect(stream))
        gate.let(2)
        await until(lambda: len(runner.batches) == 2)
        client.abort(stream.sequence_id)
        client.abort(stream.sequence_id)
        assert len(await reader) <= 2

    gate = Gate()
    runner = FakeRunner(config(), before_launch=gate)
    with running_client(runner) as client:
        run(test())
    check_idle(client)


def test_a_closed_event_loop_has_its_sequences_aborted():
    async def test() -> None:
        left_behind.append(client.generate([1], SamplingParams(max_tokens=60)))

    left_behind: list[TokenStream] = []
    gate = Gate()
    runner = FakeRunner(config(), before_launch=gate)
    with running_client(runner) as client:
        run(test())
        gate.open()
        run(until(lambda: len(runner.batches) > 0 and not client._engine.has_work))
        assert len(runner.batches) < 60
    check_idle(client)


def test_a_failed_sequence_raises_in_its_own_stream_only():
    async def test() -> None:
        bad = client.generate([1, 2], SamplingParams(max_tokens=9))
        good = client.generate([1, 2], SamplingParams(max_tokens=9))
        with pytest.raises(NonFiniteLogitsError, match="NaN or Inf after 2 prompt tokens"):
            await collect(bad)
        assert await collect(good) == expected_tokens((1, 2), 9)

    runner = FakeRunner(config(), fails=lambda sequence_id, token: sequence_id == 0)
    with running_client(runner) as client:
        run(test())
    check_idle(client)


def test_a_dead_engine_fails_every_stream_and_takes_no_more(caplog: pytest.LogCaptureFixture):
    def die_at_third_step(batch: object) -> None:
        if len(runner.batches) == 3:
            raise ZeroDivisionError("the device is gone")

    async def test() -> None:
        streams = [client.generate([1], SamplingParams(max_tokens=60)) for _ in range(6)]
        for stream in streams:
            with pytest.raises(EngineDeadError, match="died of ZeroDivisionError") as raised:
                await collect(stream)
            assert isinstance(raised.value.__cause__, ZeroDivisionError)
        assert not client.is_alive
        with pytest.raises(EngineDeadError, match="died of ZeroDivisionError"):
            client.generate([1], SamplingParams(max_tokens=1))

    runner = FakeRunner(config(), before_launch=die_at_third_step)
    with running_client(runner) as client:
        run(test())
    assert "the engine died" in caplog.text


def test_stopping_ends_open_streams():
    async def test() -> None:
        stream = client.generate([1], SamplingParams(max_tokens=60))
        stopping = asyncio.create_task(asyncio.to_thread(client.stop))
        await asyncio.sleep(0.01)
        gate.open()
        with pytest.raises(EngineDeadError, match="stopped"):
            await collect(stream)
        await stopping
        assert not client.is_alive

    gate = Gate()
    with running_client(FakeRunner(config(), before_launch=gate)) as client:
        run(test())


def test_a_client_that_was_not_started_takes_nothing():
    async def test() -> None:
        with pytest.raises(EngineDeadError, match="has not been started"):
            client.generate([1], SamplingParams(max_tokens=1))

    client = EngineClient(Engine.with_runner(FakeRunner(config()), config()))
    assert not client.is_alive
    run(test())
    client.stop()


def test_an_idle_engine_sleeps():
    async def test() -> None:
        await collect(client.generate([1], SamplingParams(max_tokens=3)))
        await until(lambda: not client._engine.has_work)
        thread_s = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - thread_s < 0.1
        assert len(runner.batches) == 3

    runner = FakeRunner(config())
    with running_client(runner) as client:
        run(test())


def test_two_tasks_cannot_wait_for_one_stream():
    async def test() -> None:
        stream = client.generate([1], SamplingParams(max_tokens=60))
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="two tasks wait"):
            await anext(stream)
        gate.open()
        await reader

    gate = Gate()
    with running_client(FakeRunner(config(), before_launch=gate)) as client:
        run(test())


def test_the_client_names_the_models_limits():
    with running_client(max_model_len=32) as client:
        assert (client.max_model_len, client.vocab_size) == (32, 50)
        assert client.is_alive
