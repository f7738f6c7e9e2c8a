"""Batches as they are run, by an `Execute` of a few lines."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from service.batches.batch_store import BatchStore
from service.batches.file_store import FileStore
from service.batches.records import BatchStatus, FileRecord, Purpose
from service.batches.runner import MAX_ENGINE_DEATHS, Answer, BatchRunner, RunLimits
from service.batches.tables import open_database
from tests.service.kept_batches import COMPLETIONS, jsonl, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from service.batches.records import BatchRecord

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


def test_a_line_that_engines_die_of_is_given_up(tmp_path):
    async def check() -> None:
        echo = Echo()
        dead = Answer(
            status=503, request_id="r", body=b"{}", is_engine_dead=True, retry_after_s=0.01
        )
        echo.refusals = [dead] * MAX_ENGINE_DEATHS
        async with bench_of(tmp_path, echo) as bench:
            done = await bench.run(lines("a"))
            assert (done.num_completed, done.num_failed) == (0, 1)
            text = bench.files.path_of(done.error_file_id).read_text()
            assert json.loads(text)["error"]["code"] == "engine_dead"

    asyncio.run(check())


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
