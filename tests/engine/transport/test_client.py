"""The client and its engine, at the two ends of a real socket; the engine in a thread."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import stat
import threading
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
import zmq
from structlog.testing import capture_logs

from engine.errors import (
    EngineDeadError,
    EngineStartError,
    InvalidConstraintError,
    InvalidTokenError,
    NonFiniteLogitsError,
    QueueFullError,
)
from engine.outputs import FinishReason
from engine.process.in_thread import EngineThread, running_engine
from engine.process.loop import BuiltEngine
from engine.request import Terms
from engine.sampling_params import SamplingParams
from engine.transport.backlog import QueueLimits
from engine.transport.client import EngineClient, Submission
from engine.transport.sockets import ClientSockets, prepare
from tests.engine.fake_engine import FakeConstraint, FakeEngine, expected_tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

    from engine.process.loop import ReportProgress
    from engine.transport.token_stream import TokenStream

pytestmark = pytest.mark.alone

PATIENCE_S = 20
ON_ITS_WAY_S = 0.05  # a message's way to the engine, in which the engine stands at its gate


class Gate:
    """Lets the engine take one step at a time."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)
        self._is_open = False

    def __call__(self) -> None:
        if not self._is_open:
            assert self._allowed.acquire(timeout=PATIENCE_S)

    def let(self, num_steps: int) -> None:
        self._allowed.release(num_steps)

    def open(self) -> None:
        self._is_open = True
        self._allowed.release()


@asynccontextmanager
async def running(
    engine: FakeEngine, gate: Gate | None = None, limits: QueueLimits | None = None
) -> AsyncIterator[EngineClient]:
    """Run an engine; when all is done, see that nothing is left in it."""
    async with running_engine(lambda tell: BuiltEngine(engine, b""), limits) as client:
        try:
            yield client
            if gate is not None:
                gate.open()
            if client.is_alive:
                await until(lambda: not engine.has_work)
                report = await client.check_integrity()
                assert report.is_idle
                assert report.problem is None
                assert client.num_open_sequences == 0
        finally:
            if gate is not None:
                gate.open()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def collect(stream: TokenStream, into: list[int] | None = None) -> list[int]:
    tokens = [] if into is None else into
    async for output in stream:
        tokens.append(output.token_id)
    return tokens


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE_S))


def params(max_tokens: int, **settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **settings)


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_gives_every_token_and_then_the_reason():
    async def test() -> None:
        async with running(FakeEngine()) as client:
            stream = client.generate([1, 2], params(5))
            outputs = [output async for output in stream]
            assert [o.token_id for o in outputs] == expected_tokens((1, 2), 5)
            assert [o.finish_reason for o in outputs] == [None] * 4 + [FinishReason.LENGTH]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            assert await stream.take() == []

    run(test())


def test_a_reader_may_take_all_that_has_come_at_once():
    async def test() -> None:
        async with running(FakeEngine()) as client:
            stream = client.generate([1, 2], params(9))
            await until(lambda: client.num_open_sequences == 0)
            assert [o.token_id for o in await stream.take()] == expected_tokens((1, 2), 9)
            assert await stream.take() == []

    run(test())


def test_many_streams_each_get_their_own_tokens():
    async def test() -> None:
        async with running(FakeEngine()) as client:
            prompts = [tuple(range(1, length)) for length in range(2, 22)]
            streams = [client.generate(p, params(len(p))) for p in prompts]
            got = await asyncio.gather(*map(collect, streams))
            assert got == [expected_tokens(p, len(p)) for p in prompts]

    run(test())


def test_logprobs_of_prompt_and_answer_cross_the_border():
    async def test() -> None:
        async with running(FakeEngine()) as client:
            stream = client.generate([1, 2, 3], params(2, logprobs=1, prompt_logprobs=0))
            outputs = [output async for output in stream]
            assert [o.logprobs.logprob for o in outputs] == [-0.5, -0.5]
            assert outputs[0].logprobs.top == ((outputs[0].token_id, -0.5),)
            assert [one.logprob for one in stream.prompt_logprobs] == [-1.0, -1.0]

    run(test())


def test_a_stream_knows_what_of_its_prompt_was_cached_when_its_first_token_comes():
    async def test() -> None:
        engine = FakeEngine(num_cached_tokens=lambda request: len(request.prompt_token_ids) - 2)
        async with running(engine) as client:
            long, short = client.submit(
                [Submission([1, 2, 3, 4, 5], params(2)), Submission([1, 2], params(2))]
            )
            assert (long.num_cached_tokens, short.num_cached_tokens) == (0, 0)
            await anext(long)
            await anext(short)
            assert (long.num_cached_tokens, short.num_cached_tokens) == (3, 0)

    run(test())


def test_a_stream_and_its_client_know_how_long_it_waited_and_when_its_tokens_came():
    async def test() -> None:
        engine = FakeEngine(step_s=0.01)
        engine.queue_s = 0.25
        async with running(engine) as client:
            before = time.monotonic()
            stream = client.generate([1, 2, 3], params(4))
            assert stream.times.queue_s is None
            assert stream.times.first_at is None
            assert len([output async for output in stream]) == 4
            times = stream.times
            assert times.queue_s == 0.25
            assert before <= times.submitted_at < times.first_at < times.last_at
            assert 0.01 <= times.longest_gap_s <= times.last_at - times.first_at
            latencies = client.latencies
            assert sum(latencies.queue.counts) == sum(latencies.first_token.counts) == 1
            assert latencies.queue.total == 0.25
            assert latencies.first_token.total == times.first_at - times.submitted_at
            gaps = latencies.between_tokens
            assert 1 <= sum(gaps.counts) <= 3
            assert gaps.total == pytest.approx(times.last_at - times.first_at)

    run(test())


def test_what_is_asked_reaches_the_engine_as_it_was_asked():
    asked = params(
        3,
        temperature=0.5,
        top_k=3,
        logit_bias={7: 1.5},
        allowed_token_ids=frozenset(range(50)),
        bad_words=((1, 2), (3,)),
        stop_token_ids=frozenset({49}),
        seed=2**63 - 1,
    )
    terms = Terms(caller="ada", weight=2.5, priority=-1, cache_salt="hers", timeout_s=9.0)
    seen = []

    def remember(request, token):
        seen.append(request)

    async def test() -> None:
        async with running(FakeEngine(fails=remember)) as client:
            (stream,) = client.submit([Submission([1, 2], asked, group=5)], terms=terms)
            await collect(stream)

    run(test())
    assert seen[0].params == asked
    assert seen[0].prompt_token_ids == (1, 2)
    assert {name: getattr(seen[0], name) for name in asdict(terms)} == asdict(terms)
    assert seen[0].group == 5


def test_a_step_wakes_the_event_loop_once_and_takes_one_message():
    async def test() -> None:
        gate = Gate()
        async with running(FakeEngine(before_step=gate), gate) as client:
            streams = [client.generate([1], params(10)) for _ in range(4)]
            delivered = []
            client._deliver = lambda report, deliver=client._deliver: (
                delivered.append(len(report.tokens)),
                deliver(report),
            )
            gate.open()
            await asyncio.gather(*map(collect, streams))
            # The first one tells of the engine's start, and may come before or after the streams.
            assert [num_tokens for num_tokens in delivered if num_tokens] == [4] * 10
            assert len(delivered) <= 11

    run(test())


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


def test_bad_requests_are_refused_before_anything_is_submitted():
    async def test() -> None:
        engine = FakeEngine()
        async with running(engine) as client:
            with pytest.raises(InvalidTokenError):
                client.generate([10**6], params(1))
            assert engine.num_steps == 0

    run(test())


def test_a_full_queue_is_told_at_once_even_while_a_step_takes_long():
    async def test() -> None:
        gate = Gate()
        engine = FakeEngine(before_step=gate, max_num_seqs=1)
        async with running(engine, gate, QueueLimits(max_queued_seqs=2)) as client:
            first = client.generate([1], params(2))
            await until(lambda: engine.has_work)  # and stands in its first step
            waiting = [client.generate([1], params(2)) for _ in range(2)]
            started = time.monotonic()
            with pytest.raises(QueueFullError, match="2 sequences wait, at most 2 may") as caught:
                client.generate([1], params(2))
            assert time.monotonic() - started < 0.05
            assert caught.value.retry_after_s >= 1
            gate.open()
            for stream in (first, *waiting):
                assert len(await collect(stream)) == 2
            await collect(client.generate([1], params(2)))  # there is room again

    run(test())


def test_a_queue_that_only_the_engine_knows_to_be_full_fails_the_sequence():
    async def test() -> None:
        gate = Gate()
        engine = FakeEngine(before_step=gate, max_queued_seqs=1)
        async with running(engine, gate) as client:
            first, second = (client.generate([1], params(2)) for _ in range(2))
            with pytest.raises(QueueFullError, match="1 sequences wait") as caught:
                await collect(second)
            assert caught.value.retry_after_s == 1
            gate.open()
            assert len(await collect(first)) == 2

    run(test())


# ── grammars ────────────────────────────────────────────────────────────────────────────────────


def test_nobody_waits_while_a_grammar_is_read():
    async def test() -> None:
        engine, is_read = FakeEngine(), threading.Event()
        engine.before_compile = lambda: is_read.wait(PATIENCE_S)
        async with running(engine) as client:
            (bound,) = client.submit([Submission([1], params(2), grammar="a list")])
            assert len(await collect(client.generate([1], params(5)))) == 5
            is_read.set()
            assert len(await collect(bound)) == 2
            assert engine.constraints[bound.sequence_id] == FakeConstraint("a list")

    run(test())


def test_grammar_that_cannot_be_read_fails_its_sequence_alone():
    async def test() -> None:
        async with running(FakeEngine()) as client:
            for grammar, message in (("unreadable", "no grammar"), ("poison", "ZeroDivisionError")):
                (bound,) = client.submit([Submission([1], params(2), grammar=grammar)])
                with pytest.raises(InvalidConstraintError, match=message):
                    await collect(bound)
            assert len(await collect(client.generate([1], params(5)))) == 5

    run(test())


def test_a_grammar_that_was_read_is_told_before_any_step_ends():
    async def test() -> None:
        gate = Gate()
        engine = FakeEngine(before_step=gate)
        async with running(engine, gate) as client:
            (bound,) = client.submit([Submission([1], params(2), grammar="a list")])
            async with asyncio.timeout(PATIENCE_S):
                await bound.accepted()
            assert engine.num_steps == 0
            gate.open()
            assert len(await collect(bound)) == 2
            await bound.accepted()  # at once, from then on

    run(test())


def test_who_waits_for_a_grammar_is_told_why_it_cannot_be_read():
    async def test() -> None:
        async with running(FakeEngine()) as client:
            (bound,) = client.submit([Submission([1], params(2), grammar="unreadable")])
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(InvalidConstraintError, match="no grammar"):
                    await bound.accepted()

    run(test())


def test_sequence_that_leaves_while_its_grammar_is_read_never_runs():
    async def test() -> None:
        engine, is_read = FakeEngine(), threading.Event()
        engine.before_compile = lambda: is_read.wait(PATIENCE_S)
        async with running(engine) as client:
            (bound,) = client.submit([Submission([1], params(2), grammar="a list")])
            await collect(client.generate([1], params(1)))
            await bound.aclose()
            await collect(client.generate([1], params(1)))
            is_read.set()
            await collect(client.generate([1], params(1)))
            assert bound.sequence_id not in engine.constraints

    run(test())


def test_who_waits_for_a_grammar_takes_a_place_in_the_queue():
    async def test() -> None:
        engine, is_read = FakeEngine(max_num_seqs=1), threading.Event()
        engine.before_compile = lambda: is_read.wait(PATIENCE_S)
        async with running(engine, limits=QueueLimits(max_queued_seqs=2)) as client:
            await client.check_integrity()  # by then the engine has told of its free slot
            bound = [
                client.submit([Submission([1], params(2), grammar="a list")])[0] for _ in range(3)
            ]
            for _ in range(2):  # by then the engine has told of all of them
                await client.check_integrity()
            with pytest.raises(QueueFullError):
                client.submit([Submission([1], params(2))])
            is_read.set()
            for stream in bound:
                assert len(await collect(stream)) == 2

    run(test())


# ── leaving ─────────────────────────────────────────────────────────────────────────────────────


def test_leaving_early_ends_the_sequence_within_a_step():
    async def test() -> None:
        gate = Gate()
        engine = FakeEngine(before_step=gate)
        async with running(engine, gate) as client:
            async with aclosing(client.generate([1], params(60))) as stream:
                gate.let(2)
                await anext(stream)
            await asyncio.sleep(ON_ITS_WAY_S)
            gate.open()
            await until(lambda: not engine.has_work)
            assert engine.num_steps <= 4

    run(test())


def test_a_stream_that_was_never_read_can_be_closed():
    async def test() -> None:
        engine = FakeEngine()
        async with running(engine) as client:
            stream = client.generate([1], params(60))
            await stream.aclose()
            await stream.aclose()
            assert await collect(stream) == []
        assert engine.num_steps == 0  # both went in one message

    run(test())


def test_cancelling_the_reader_aborts_the_sequence():
    async def test() -> None:
        gate = Gate()
        engine = FakeEngine(before_step=gate)
        async with running(engine, gate) as client:
            reader = asyncio.create_task(collect(client.generate([1], params(60))))
            await asyncio.sleep(0.01)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await asyncio.sleep(ON_ITS_WAY_S)
            gate.open()
            await until(lambda: not engine.has_work)
            assert engine.num_steps < 60

    run(test())


def test_a_stream_that_nobody_holds_is_aborted():
    async def test() -> None:
        gate = Gate()
        engine = FakeEngine(before_step=gate)
        async with running(engine, gate) as client:
            client.generate([1], params(60))
            gc.collect()
            for _ in range(30):
                gate.let(1)
                await asyncio.sleep(0.005)
            assert 0 < engine.num_steps < 30
            assert not engine.has_work

    run(test())


def test_a_sequence_aborted_from_elsewhere_ends_its_stream():
    async def test() -> None:
        gate = Gate()
        engine = FakeEngine(before_step=gate)
        async with running(engine, gate) as client:
            stream = client.generate([1], params(60))
            reader = asyncio.create_task(collect(stream))
            gate.let(2)
            await until(lambda: engine.num_steps == 2)
            client.abort(stream.sequence_id)
            client.abort(stream.sequence_id)
            assert len(await reader) <= 2
            await asyncio.sleep(ON_ITS_WAY_S)

    run(test())


# ── failing ─────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_sequence_raises_in_its_own_stream_only():
    def fail_first(request, token):
        return NonFiniteLogitsError("NaN or Inf") if request.sequence_id == 0 else None

    async def test() -> None:
        async with running(FakeEngine(fails=fail_first)) as client:
            bad, good = (client.generate([1, 2], params(9)) for _ in range(2))
            with pytest.raises(NonFiniteLogitsError, match="NaN or Inf"):
                await collect(bad)
            assert await collect(good) == expected_tokens((1, 2), 9)

    run(test())


def test_a_dead_engine_fails_every_stream_and_takes_no_more():
    def die_at_third_step() -> None:
        if engine.num_steps == 2:
            raise ZeroDivisionError("/a/path that is nobody's business")

    async def test() -> None:
        async with running(engine) as client:
            streams = [client.generate([1], params(60)) for _ in range(6)]
            for number, stream in enumerate(streams):
                with pytest.raises(EngineDeadError, match=r"died of ZeroDivisionError$"):
                    assert len(await collect(stream)) == (2 if number < 4 else 0)
            assert not client.is_alive
            for _ in range(2):
                with pytest.raises(EngineDeadError, match="died of ZeroDivisionError"):
                    client.generate([1], params(1))
            with pytest.raises(EngineDeadError):
                await client.check_integrity()

    engine = FakeEngine(before_step=die_at_third_step)
    with capture_logs() as logs:
        run(test())
    assert [entry["event"] for entry in logs] == ["engine_failed"]


def test_stopping_fails_open_streams_after_what_came_before():
    async def test() -> None:
        engine = FakeEngine(step_s=0.002)
        async with running_engine(lambda tell: BuiltEngine(engine, b"")) as client:
            stream = client.generate([1], params(60))
            await anext(stream)
        tokens: list[int] = []
        with pytest.raises(EngineDeadError, match="was stopped"):
            await collect(stream, into=tokens)
        assert tokens == expected_tokens([1], 60)[1 : 1 + len(tokens)]
        assert not client.is_alive

    run(test())


def test_loading_is_told_and_may_fail():
    async def test() -> None:
        def build(tell: ReportProgress) -> BuiltEngine:
            tell("downloading", 43.0)
            tell("preparing kernels")
            raise EngineStartError("there is no such branch")

        sockets, events = ClientSockets(), []
        client = EngineClient(sockets, QueueLimits(), on_progress=events.append)
        with pytest.raises(EngineDeadError, match="has not been loaded yet"):
            client.generate([1], params(1))
        thread = EngineThread(sockets.folder, build)
        with pytest.raises(EngineStartError, match="no such branch"):
            await client.ready()
        assert [(p.phase, p.percent) for p in events] == [
            ("downloading", 43.0),
            ("preparing kernels", None),
        ]
        await thread.ended()
        client.end(EngineDeadError("over"))
        assert not sockets.folder.exists()

    run(test())


def test_last_words_are_heard_though_the_end_is_noticed_first():
    """An engine that fails at once ends sooner than its words arrive."""

    def build(tell: ReportProgress) -> BuiltEngine:
        raise EngineStartError("no room", start_failure=b"for whoever tries next")

    async def test() -> None:
        for _ in range(100):
            sockets = ClientSockets()
            client = EngineClient(sockets, QueueLimits())
            await EngineThread(sockets.folder, build).ended()
            await client.drain_messages()
            client.end(EngineDeadError("it ended"))
            assert isinstance(client.death, EngineStartError)
            assert client.death.start_failure == b"for whoever tries next"

    run(test())


def test_last_words_of_an_engine_that_never_came_are_not_waited_for_for_long(monkeypatch):
    monkeypatch.setattr("engine.transport.client._DRAIN_S", 0.05)

    async def test() -> None:
        client = EngineClient(ClientSockets(), QueueLimits())
        started = time.monotonic()
        await client.drain_messages()
        assert 0.05 <= time.monotonic() - started < 5
        client.end(EngineDeadError("it never came"))
        await client.drain_messages()  # and none of one that was given up

    run(test())


# ── the rest ────────────────────────────────────────────────────────────────────────────────────


def test_sockets_have_names_that_only_their_owner_may_use():
    async def test() -> None:
        one, other = ClientSockets(), ClientSockets()
        assert one.folder != other.folder
        assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700
        names = list(one.folder.iterdir())
        assert len(names) == 2
        assert all(stat.S_IMODE(name.stat().st_mode) == 0o600 for name in names)
        for sockets in (one, other):
            sockets.close()
            assert not sockets.folder.exists()

    run(test())


def test_names_are_gone_once_the_engine_has_come():
    async def test() -> None:
        sockets = ClientSockets()
        client = EngineClient(sockets, QueueLimits())
        thread = EngineThread(sockets.folder, lambda tell: BuiltEngine(FakeEngine(), b"x"))
        assert (await client.ready()).model_description == b"x"
        assert not sockets.folder.exists()
        assert len(await collect(client.generate([1], params(3)))) == 3
        client.shut_down()
        await thread.ended()
        client.end(EngineDeadError("over"))

    run(test())


def test_wrong_accounting_is_reported():
    async def test() -> None:
        engine = FakeEngine()
        engine.leaks = True
        async with running_engine(lambda tell: BuiltEngine(engine, b"")) as client:
            report = await client.check_integrity()
        assert report.is_idle
        assert report.problem == "3 blocks are owned by nobody"

    run(test())


def test_the_client_hears_its_engine_while_a_step_takes_long():
    async def test() -> None:
        gate = Gate()
        async with running(FakeEngine(before_step=gate), gate) as client:
            stream = client.generate([1], params(1))
            await until(lambda: client.step_s > 0.4)
            assert time.monotonic() - client.last_heard < 1
            gate.open()
            await collect(stream)
            await until(lambda: client.step_s == 0)

    run(test())


def test_an_idle_engine_sleeps():
    async def test() -> None:
        engine = FakeEngine()
        async with running(engine) as client:
            await collect(client.generate([1], params(3)))
            began_s = time.process_time()
            await asyncio.sleep(0.2)
            assert time.process_time() - began_s < 0.1
            assert engine.num_steps == 3

    run(test())


def test_two_tasks_cannot_wait_for_one_stream():
    async def test() -> None:
        gate = Gate()
        async with running(FakeEngine(before_step=gate), gate) as client:
            stream = client.generate([1], params(60))
            reader = asyncio.create_task(collect(stream))
            await asyncio.sleep(0.01)
            with pytest.raises(RuntimeError, match="two tasks wait"):
                await anext(stream)
            gate.open()
            await reader

    run(test())


def test_the_client_names_the_models_limits():
    async def test() -> None:
        async with running(FakeEngine(max_model_len=32)) as client:
            assert (client.max_model_len, client.vocab_size) == (32, 50)
            assert client.is_alive

    run(test())


def test_names_of_sockets_are_short_wherever_temporary_files_go(monkeypatch, tmp_path):
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))

    async def test() -> None:
        async with running(FakeEngine()) as client:
            assert len(await collect(client.generate([1], params(3)))) == 3

    run(test())


def test_sockets_that_cannot_be_made_leave_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepare()
    num_fds, made = len(os.listdir("/proc/self/fd")), []

    def fails_at_the_second(socket, path):
        made.append(path)
        if len(made) == 2:
            raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr("engine.transport.sockets._listen", fails_at_the_second)
    with pytest.raises(OSError, match="open files"):
        ClientSockets()
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + PATIENCE_S
    while len(os.listdir("/proc/self/fd")) > num_fds:  # they are closed in another thread
        assert time.monotonic() < deadline
        time.sleep(0.01)
