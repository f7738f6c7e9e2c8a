"""Batches as they are run, by an `Execute` of a few lines."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from service.batches import disk_faults, runner
from service.batches.attempts import MAX_ENDS, Answer
from service.batches.batch_store import BatchStore
from service.batches.file_store import FileStore
from service.batches.input_lines import InputRules, read_lines
from service.batches.records import BatchStatus, FileRecord, Purpose
from service.batches.runner import BatchRunner, RunLimits
from service.batches.tables import open_database
from tests.service.kept_batches import COMPLETIONS, empty, fill, jsonl, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from service.batches.records import BatchRecord

RULES = InputRules(endpoint=COMPLETIONS, max_lines=100, max_body_bytes=1000)
LARGE = RunLimits(max_at_once=6, max_lines=100, max_body_bytes=10_000)
LIMITS = RunLimits(max_at_once=3, max_lines=100, max_body_bytes=1000)


class Echo:
    """Answers each request with its own prompt; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.owners: set[str] = set()
        self.num_running = self.most_running = 0
        self.refusals: list[Answer] = []
        self.gate: asyncio.Event | None = None  # None lets all pass

    async def __call__(self, url: str, body: bytes, owner: str, request_id: str) -> Answer:
        assert url == COMPLETIONS
        self.owners.add(owner)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await (asyncio.sleep(0) if self.gate is None else self.gate.wait())
            self.asked.append(json.loads(body)["prompt"])
            if self.refusals:
                return self.refusals.pop(0)
        finally:
            self.num_running -= 1
        status = 400 if b"bad" in body else 200
        return Answer(status=status, request_id=request_id, body=body)


class Bench:
    def __init__(self, folder: Path, execute: Echo, pool: ThreadPoolExecutor) -> None:
        self.database = open_database(folder / "db")
        self.files = FileStore(self.database, folder / "files")
        self.batches = BatchStore(self.database, self.files)

        async def in_thread(work: Callable[[], Any]) -> Any:
            return await asyncio.get_running_loop().run_in_executor(pool, work)

        self.runner = BatchRunner(self.batches, self.files, in_thread, execute, LIMITS)

    def add(self, content: bytes, *, lasts_s: int = 100, owner: str = "me") -> BatchRecord:
        file_id = self.files.new_id()
        self.files.part_of(file_id).write_bytes(content)
        now = int(time.time())
        self.files.add(
            FileRecord(
                number=0,
                id=file_id,
                owner=owner,
                filename="a",
                purpose=Purpose.BATCH,
                num_bytes=len(content),
                created_at=now,
            )
        )
        return self.batches.add(
            {
                "owner": owner,
                "input_file_id": file_id,
                "endpoint": COMPLETIONS,
                "completion_window": "24h",
                "metadata": None,
                "output_expires_after_s": None,
                "created_at": now,
                "expires_at": now + lasts_s,
            }
        )

    async def run(self, content: bytes, **how: Any) -> BatchRecord:
        batch = self.add(content, **how)
        self.runner.add(batch)
        await asyncio.wait_for(self.runner.until_over(batch.id), 20)
        return self.batches.get(batch.id)

    def ids(self, file_id: str | None) -> list[str]:
        if file_id is None:
            return []
        lines = self.files.path_of(file_id).read_text().splitlines()
        return [json.loads(each)["custom_id"] for each in lines]


@asynccontextmanager
async def bench_of(folder: Path, execute: Echo | None = None) -> AsyncIterator[Bench]:
    with ThreadPoolExecutor(1) as pool:
        bench = Bench(folder, execute or Echo(), pool)
        try:
            yield bench
        finally:
            await bench.runner.close()
            bench.database.dispose()


def path_of(bench: Bench, batch: BatchRecord) -> Path:
    return bench.files.path_of(batch.input_file_id)


def lines(*prompts: str) -> bytes:
    return jsonl(*(line(f"id {prompt}", prompt=prompt) for prompt in prompts))


def test_every_line_is_run_once_for_its_owner(tmp_path):
    async def check() -> None:
        echo = Echo()
        prompts = [str(number) for number in range(20)]
        async with bench_of(tmp_path, echo) as bench:
            done = await bench.run(lines(*prompts), owner="somebody")
            assert done.status is BatchStatus.COMPLETED
            assert bench.ids(done.output_file_id) == [f"id {each}" for each in prompts]
        assert sorted(echo.asked) == sorted(prompts)
        assert echo.owners == {"somebody"}
        assert echo.most_running <= LIMITS.max_at_once

    asyncio.run(check())


def test_as_many_are_run_at_once_as_are_allowed_and_no_more(tmp_path):
    async def check() -> None:
        echo = Echo()
        echo.gate = asyncio.Event()
        async with bench_of(tmp_path, echo) as bench:
            batch = bench.add(lines(*"abcdefgh"))
            bench.runner.add(batch)
            await until(lambda: echo.num_running == LIMITS.max_at_once)
            assert bench.runner.counts.num_running == LIMITS.max_at_once
            assert bench.runner.counts.num_waiting == 8 - LIMITS.max_at_once
            echo.gate.set()
            await bench.runner.until_over(batch.id)
        assert echo.most_running == LIMITS.max_at_once

    asyncio.run(check())


def test_errors_are_told_apart_and_do_not_stop_the_rest(tmp_path):
    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            done = await bench.run(lines("good", "bad", "better"))
            assert (done.num_completed, done.num_failed) == (2, 1)
            assert bench.ids(done.error_file_id) == ["id bad"]
            counts = bench.runner.counts
            assert (counts.num_completed, counts.num_failed) == (2, 1)
            assert (counts.num_running, counts.num_waiting, counts.open_lines) == (0, 0, {})

    asyncio.run(check())


def test_nothing_is_run_of_a_file_with_a_fault(tmp_path):
    async def check() -> None:
        echo = Echo()
        async with bench_of(tmp_path, echo) as bench:
            done = await bench.run(lines("a") + b"nonsense\n")
            assert done.status is BatchStatus.FAILED
            assert [fault.line for fault in done.faults] == [2]
        assert echo.asked == []

    asyncio.run(check())


def test_a_file_that_is_gone_fails_its_batch(tmp_path):
    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            batch = bench.add(lines("a"))
            bench.files.path_of(batch.input_file_id).unlink()
            bench.runner.add(batch)
            await bench.runner.until_over(batch.id)
            assert bench.batches.get(batch.id).faults[0].code == "file_not_found"

    asyncio.run(check())


def test_batches_take_turns(tmp_path):
    async def check() -> None:
        echo = Echo()
        async with bench_of(tmp_path, echo) as bench:
            first = bench.add(lines(*(f"a{number}" for number in range(30))))
            second = bench.add(lines(*(f"b{number}" for number in range(5))))
            for batch in (first, second):
                bench.runner.add(batch)
            await bench.runner.until_over(second.id)
            await bench.runner.until_over(first.id)
        last_of_second = max(i for i, prompt in enumerate(echo.asked) if prompt[0] == "b")
        assert last_of_second < 25

    asyncio.run(check())


def test_what_is_refused_for_the_moment_is_asked_again(tmp_path):
    async def check() -> None:
        echo = Echo()
        later = Answer(
            status=429, request_id="r", body=b"{}", is_for_later=True, retry_after_s=0.01
        )
        echo.refusals = [later] * 3
        async with bench_of(tmp_path, echo) as bench:
            done = await bench.run(lines("a"))
            assert (done.num_completed, done.num_failed) == (1, 0)
        assert echo.asked == ["a"] * 4

    asyncio.run(check())


def test_a_batch_for_a_model_that_does_not_answer_keeps_no_other_from_running(tmp_path):
    class Loading(Echo):
        async def __call__(self, url: str, body: bytes, owner: str, request_id: str) -> Answer:
            answer = await super().__call__(url, body, owner, request_id)
            refusal = Answer(
                status=503, request_id="r", body=b"{}", is_for_later=True, retry_after_s=100
            )
            return refusal if b"absent" in body else answer

    async def check() -> None:
        echo = Loading()
        async with bench_of(tmp_path, echo) as bench:
            waits = bench.add(lines(*(f"absent {number}" for number in range(9))))
            bench.runner.add(waits)
            await until(lambda: len(echo.asked) >= LIMITS.max_at_once)
            done = await bench.run(lines(*"abcdef"), owner="another")
            assert (done.status, done.num_completed) == (BatchStatus.COMPLETED, 6)
            counts = bench.runner.counts
            assert (counts.num_running, counts.num_waiting) == (0, 9)
            begun = [each for each in echo.asked if "absent" in each]
            assert len(begun) == LIMITS.max_at_once, "no more lines lie in memory than may run"

    asyncio.run(check())


def test_a_line_that_engines_die_of_is_given_up(tmp_path):
    async def check() -> None:
        echo = Echo()
        dead = Answer(
            status=503, request_id="r", body=b"{}", ended="engine_dead", retry_after_s=0.01
        )
        echo.refusals = [dead] * MAX_ENDS
        async with bench_of(tmp_path, echo) as bench:
            done = await bench.run(lines("a"))
            assert (done.num_completed, done.num_failed) == (0, 1)
            text = bench.files.path_of(done.error_file_id).read_text()
            assert json.loads(text)["error"]["code"] == "engine_dead"

    asyncio.run(check())


def test_a_batch_that_is_over_gives_the_disk_its_room_back(tmp_path):
    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            many = [line(f"id {i}", prompt=str(i), pad="x" * 800) for i in range(99)]
            done = await bench.run(jsonl(*(many)))
            assert done.num_completed == 99
            with bench.database.connect() as connection:
                free = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            assert free == 0

    asyncio.run(check())


def test_room_that_cannot_be_given_back_is_no_fault_of_the_batch(tmp_path, monkeypatch):
    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            other = sqlite3.connect(tmp_path / "db", isolation_level=None, check_same_thread=False)
            real = bench.batches.give_back_space

            def give_back_space() -> bool:
                other.execute("BEGIN IMMEDIATE")  # another program has it
                return real()

            monkeypatch.setattr(bench.batches, "give_back_space", give_back_space)
            done = await bench.run(jsonl(*(line(f"id {i}", pad="x" * 800) for i in range(99))))
            other.close()
            assert done.status is BatchStatus.COMPLETED
            assert (bench.runner.num_open, bench.runner.num_stopped) == (0, 0)

    with capture_logs() as logs:
        asyncio.run(check())
    assert [each["event"] for each in logs] == ["batch_runs", "batch_over", "batch_space_kept"]
    assert logs[-1]["reason"] == "database is locked"


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path):
    async def check() -> None:
        echo = Echo()
        async with bench_of(tmp_path, echo) as bench:
            batch = bench.add(lines("a", "b", "c", "d", "e"))
            bench.runner.add(batch)
            await until(lambda: len(echo.asked) >= 2)
            echo.gate = asyncio.Event()
            noted = bench.batches.get(batch.id)
            if noted.status is BatchStatus.IN_PROGRESS:
                noted = bench.batches.set_status(noted, BatchStatus.CANCELLING)
            bench.runner.cancel(noted)
            await asyncio.wait_for(bench.runner.until_over(batch.id), 10)
            done = bench.batches.get(batch.id)
            told = bench.ids(done.output_file_id) + bench.ids(done.error_file_id)
            assert sorted(told) == [f"id {each}" for each in "abcde"]

    asyncio.run(check())


def test_a_batch_is_ended_when_its_time_is_over(tmp_path):
    async def check() -> None:
        echo = Echo()
        echo.gate = asyncio.Event()  # nothing is ever answered
        async with bench_of(tmp_path, echo) as bench:
            done = await bench.run(lines("a", "b"), lasts_s=1)
            assert done.status is BatchStatus.EXPIRED
            assert bench.ids(done.error_file_id) == ["id a", "id b"]
        assert echo.num_running == 0

    asyncio.run(check())


def test_what_was_under_way_when_the_runner_closed_runs_after_the_next_start(tmp_path):
    async def check() -> None:
        prompts = [str(number) for number in range(12)]
        echo = Echo()
        async with bench_of(tmp_path, echo) as bench:
            batch = bench.add(lines(*prompts))
            bench.runner.add(batch)
            await until(lambda: len(echo.asked) >= 5)
            echo.gate = asyncio.Event()
            await until(lambda: echo.num_running == LIMITS.max_at_once)
            await bench.runner.close()
        again = Echo()
        async with bench_of(tmp_path, again) as bench:
            (left,) = bench.batches.open_ones()
            bench.runner.add(left)
            await bench.runner.until_over(batch.id)
            done = bench.batches.get(batch.id)
            assert bench.ids(done.output_file_id) == [f"id {each}" for each in prompts]
        assert len(again.asked) + len(echo.asked) == len(prompts)

    asyncio.run(check())


def test_a_place_is_given_back_by_a_line_that_was_cancelled_before_it_began(tmp_path):
    async def check() -> None:
        echo = Echo()
        async with bench_of(tmp_path, echo) as bench:
            for _ in range(2 * LIMITS.max_at_once):
                echo.gate = asyncio.Event()
                batch = bench.add(lines("a", "b", "c", "d"))
                bench.runner.add(batch)
                await until(lambda: echo.num_running > 0)
                noted = bench.batches.set_status(
                    bench.batches.get(batch.id), BatchStatus.CANCELLING
                )
                bench.runner.cancel(noted)
                await asyncio.wait_for(bench.runner.until_over(batch.id), 10)
                assert bench.batches.get(batch.id).status is BatchStatus.CANCELLED
            echo.gate = None
            done = await bench.run(lines("x"))
            assert done.status is BatchStatus.COMPLETED

    asyncio.run(check())


def in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_faults, "FIRST_WAIT_S", 0.01)


def test_a_full_disk_stops_a_batch_that_goes_on_once_it_is_well(tmp_path, monkeypatch):
    in_short(monkeypatch)

    async def check() -> None:
        echo = Echo()
        long = {str(number): "x" * 5000 for number in range(12)}
        echo.gate = asyncio.Event()
        async with bench_of(tmp_path, echo) as bench:
            batch = bench.add(jsonl(*(line(f"id {i}", prompt=i, pad=x) for i, x in long.items())))
            bench.runner = BatchRunner(
                bench.batches, bench.files, bench.runner._in_thread, echo, LARGE
            )
            bench.runner.add(batch)
            await until(lambda: echo.num_running == LARGE.max_at_once)
            fill(bench.database)
            echo.gate.set()
            await until(lambda: bench.runner.num_stopped == 1)
            await asyncio.sleep(0.1)  # tried some times meanwhile
            now = bench.batches.get(batch.id)
            assert now.status is BatchStatus.IN_PROGRESS
            assert now.num_completed < LARGE.max_at_once
            assert len(echo.asked) < len(long), "no more is asked while nothing can be kept"
            assert bench.runner.num_open == 1
            empty(bench.database)
            await asyncio.wait_for(bench.runner.until_over(batch.id), 20)
            done = bench.batches.get(batch.id)
            assert (done.status, done.num_completed) == (BatchStatus.COMPLETED, len(long))
            assert bench.ids(done.output_file_id) == [f"id {each}" for each in long]
            assert (bench.runner.num_stopped, bench.runner.num_open) == (0, 0)
        assert sorted(echo.asked) == sorted(long), "what was answered is not asked again"

    with capture_logs() as logs:
        asyncio.run(check())
    told = [each["event"] for each in logs]
    assert told == ["batch_runs", "batch_stopped", "batch_goes_on", "batch_over"]


@pytest.mark.parametrize("step", ["begin", "unanswered", "finalize", "finish"])
def test_each_step_of_a_batch_is_taken_again_after_a_fault(tmp_path, monkeypatch, step):
    in_short(monkeypatch)

    async def check() -> None:
        echo = Echo()
        async with bench_of(tmp_path, echo) as bench:
            real, faults = getattr(bench.batches, step), [OSError(5, "I/O error")] * 3

            def faulty(*arguments: Any) -> Any:
                if faults:
                    raise faults.pop()
                return real(*arguments)

            monkeypatch.setattr(bench.batches, step, faulty)
            done = await bench.run(lines("a", "b"))
            assert (done.status, done.num_completed) == (BatchStatus.COMPLETED, 2)
        assert (sorted(echo.asked), faults) == (["a", "b"], [])

    asyncio.run(check())


def test_a_batch_whose_file_cannot_be_read_keeps_no_other_from_running(tmp_path, monkeypatch):
    in_short(monkeypatch)

    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            batch = bench.add(lines("a", "b"))
            batch = bench.batches.begin(batch, read_lines(path_of(bench, batch), RULES)[0])
            hidden = path_of(bench, batch).rename(tmp_path / "hidden")
            bench.runner.add(batch)
            await until(lambda: bench.runner.num_stopped == 1)
            assert (await bench.run(lines(*"cdefgh"))).status is BatchStatus.COMPLETED
            hidden.rename(path_of(bench, batch))
            await asyncio.wait_for(bench.runner.until_over(batch.id), 20)
            assert bench.batches.get(batch.id).num_completed == 2

    asyncio.run(check())


def test_a_stopped_batch_can_be_cancelled(tmp_path, monkeypatch):
    in_short(monkeypatch)

    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            batch = bench.add(lines("a", "b"))
            batch = bench.batches.begin(batch, read_lines(path_of(bench, batch), RULES)[0])
            path_of(bench, batch).unlink()
            bench.runner.add(batch)
            await until(lambda: bench.runner.num_stopped == 1)
            bench.runner.cancel(bench.batches.set_status(batch, BatchStatus.CANCELLING))
            await asyncio.wait_for(bench.runner.until_over(batch.id), 20)
            done = bench.batches.get(batch.id)
            assert (done.status, done.num_failed) == (BatchStatus.CANCELLED, 2)

    asyncio.run(check())


def unreadable(bench: Bench, **how: Any) -> BatchRecord:
    """A batch whose file is a folder, as a disk with a fault may have it."""
    batch = bench.add(lines("a", "b"), **how)
    path_of(bench, batch).unlink()
    path_of(bench, batch).mkdir()
    return batch


def test_a_batch_whose_file_cannot_be_read_can_be_cancelled_before_it_has_begun(tmp_path):
    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            batch = unreadable(bench)
            bench.runner.add(batch)
            await until(lambda: bench.runner.num_stopped == 1)
            bench.runner.cancel(bench.batches.set_status(batch, BatchStatus.CANCELLING))
            await asyncio.wait_for(bench.runner.until_over(batch.id), 5)
            assert bench.batches.get(batch.id).status is BatchStatus.CANCELLED
            assert (bench.runner.num_open, bench.runner.num_stopped) == (0, 0)

    asyncio.run(check())


def test_a_batch_whose_file_cannot_be_read_ends_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_READING_S", 0.1)

    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            batch = unreadable(bench, lasts_s=-10)
            bench.runner.add(batch)
            await asyncio.wait_for(bench.runner.until_over(batch.id), 5)
            assert bench.batches.get(batch.id).status is BatchStatus.EXPIRED

    asyncio.run(check())


def test_the_lines_of_a_file_that_can_be_read_are_told_of_however_late_it_is(tmp_path):
    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            done = await bench.run(lines("a", "b"), lasts_s=-10)
            assert done.status is BatchStatus.EXPIRED
            assert bench.ids(done.error_file_id) == ["id a", "id b"]

    asyncio.run(check())


def test_a_batch_that_a_fault_of_ours_stopped_counts_as_such_and_can_be_cancelled(
    tmp_path, monkeypatch
):
    async def check() -> None:
        async with bench_of(tmp_path) as bench:
            with monkeypatch.context() as broken:
                broken.setattr(bench.batches, "unanswered", lambda *_: 1 / 0)
                batch = await bench.run(lines("a"))
            assert batch.status is BatchStatus.IN_PROGRESS
            assert (bench.runner.num_open, bench.runner.num_stopped) == (1, 1)
            assert bench.runner.oldest_created_at == batch.created_at
            bench.runner.cancel(bench.batches.set_status(batch, BatchStatus.CANCELLING))
            await asyncio.wait_for(bench.runner.until_over(batch.id), 20)
            assert bench.batches.get(batch.id).status is BatchStatus.CANCELLED
            assert (bench.runner.num_open, bench.runner.num_stopped) == (0, 0)
            assert bench.runner.oldest_created_at is None

    asyncio.run(check())


def test_a_batch_that_is_cancelled_while_its_file_is_read_does_not_begin(tmp_path):
    async def check() -> None:
        echo = Echo()
        async with bench_of(tmp_path, echo) as bench:
            batch = bench.add(lines("a"))
            bench.batches.set_status(batch, BatchStatus.CANCELLING)
            bench.runner.add(batch)  # as it was when it was read
            await asyncio.wait_for(bench.runner.until_over(batch.id), 10)
            assert bench.batches.get(batch.id).status is BatchStatus.CANCELLED
        assert echo.asked == []

    asyncio.run(check())
