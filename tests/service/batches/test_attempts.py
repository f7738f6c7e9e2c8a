"""Requests of a batch that are refused for the moment, asked of an `Execute` of a few lines."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from service.batches import attempts as module
from service.batches.attempts import LONGEST_WAIT_S, MAX_ENDS, Answer, Attempts, Place
from service.batches.records import BatchRecord, BatchStatus, LineCounts, LineRecord
from tests.replaced import note_waits

if TYPE_CHECKING:
    from service.batches.records import LineResult

BATCH = BatchRecord(
    number=1,
    id="batch_1",
    owner="me",
    input_file_id="file-1",
    endpoint="/v1/completions",
    completion_window="24h",
    status=BatchStatus.IN_PROGRESS,
    created_at=0,
    expires_at=9,
)


class Server:
    """Answers for the models that it serves."""

    def __init__(self) -> None:
        self.served: set[str] = set()
        self.ended: str | None = None  # what happens to each request
        self.asked: list[str] = []
        self.num_running = 0
        self.takes: asyncio.Event | None = None  # None answers at once

    async def __call__(self, url: str, body: bytes, owner: str, request_id: str) -> Answer:
        model = json.loads(body).get("model")
        self.asked.append(model)
        if self.ended is not None:
            return refusal(ended=self.ended, is_for_later=False)
        if model not in self.served:
            return refusal()
        self.num_running += 1
        try:
            if self.takes is not None:
                await self.takes.wait()
        finally:
            self.num_running -= 1
        return Answer(status=200, request_id=request_id, body=b"{}")


def refusal(*, ended: str | None = None, is_for_later: bool = True) -> Answer:
    return Answer(
        status=503,
        request_id="r",
        body=b"{}",
        is_for_later=is_for_later,
        ended=ended,
        reason="it loads",
        retry_after_s=1,
    )


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(module, "LET_THROUGH_S", 0.01)
    return note_waits(monkeypatch, module, num_turns=20)


def begin(
    own: Attempts, number: int, model: str = "a", place: Place | None = None
) -> asyncio.Task[LineResult]:
    line = LineRecord(number=number, custom_id=f"id {number}", offset=0, num_bytes=1)
    place = place or Place(asyncio.Semaphore(100), LineCounts())
    return asyncio.create_task(own.result_of(line, json.dumps({"model": model}).encode(), place))


async def until_asked(server: Server, num: int) -> None:
    async with asyncio.timeout(10):
        while len(server.asked) < num:
            await asyncio.get_running_loop().run_in_executor(None, int)


def test_one_of_many_asks_for_all_ever_more_rarely_and_it_is_told_once(waits):
    async def check() -> list[LineResult]:
        server = Server()
        own = Attempts(BATCH, server)
        tasks = [begin(own, number) for number in range(40)]
        await until_asked(server, 46)
        assert own.num_running == 40
        assert waits[:6] == [1, 2, 4, 8, LONGEST_WAIT_S, LONGEST_WAIT_S]
        assert len(server.asked) - 40 in (len(waits), len(waits) - 1)
        server.served = {"a"}
        num_refused = len(server.asked)
        results = await asyncio.gather(*tasks)
        assert len(server.asked) <= num_refused + 41
        assert own.num_running == 0
        return results

    with capture_logs() as logs:
        results = asyncio.run(check())
    assert not any(each.has_failed for each in results)
    assert [each["event"] for each in logs] == ["batch_waits", "batch_goes_on"]
    assert (logs[0]["batch"], logs[0]["reason"]) == ("batch_1", "it loads")


def test_the_others_begin_while_the_first_that_was_let_through_is_answered(waits):
    async def check() -> None:
        server = Server()
        own = Attempts(BATCH, server)
        tasks = [begin(own, number) for number in range(8)]
        await until_asked(server, 9)
        server.takes, server.served = asyncio.Event(), {"a"}
        async with asyncio.timeout(10):
            while server.num_running < 8:
                await asyncio.get_running_loop().run_in_executor(None, int)
        server.takes.set()
        await asyncio.gather(*tasks)

    asyncio.run(check())


def test_requests_for_another_model_do_not_wait(waits):
    async def check() -> None:
        server = Server()
        server.served = {"b"}
        own = Attempts(BATCH, server)
        waiting = begin(own, 1, "a")
        await until_asked(server, 2)
        assert not (await begin(own, 2, "b")).has_failed
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(check())


def test_one_that_is_cancelled_while_it_asks_for_all_leaves_nothing_running(waits):
    async def check() -> None:
        server = Server()
        own = Attempts(BATCH, server)
        first, second = begin(own, 1), begin(own, 2)
        await until_asked(server, 3)
        server.takes, server.served = asyncio.Event(), {"a"}
        async with asyncio.timeout(10):
            while server.num_running < 2:
                await asyncio.get_running_loop().run_in_executor(None, int)
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert (server.num_running, own.num_running) == (0, 0)

    asyncio.run(check())


@pytest.mark.parametrize("code", ["engine_dead", "template_interrupted"])
def test_a_request_with_which_it_ended_thrice_is_given_up(waits, code):
    server = Server()
    server.ended = code

    async def check() -> LineResult:
        return await begin(Attempts(BATCH, server), 1)

    with capture_logs() as logs:
        result = asyncio.run(check())
    assert result.has_failed
    assert json.loads(result.text)["error"]["code"] == code
    assert len(server.asked) == MAX_ENDS
    assert [each["event"] for each in logs] == ["batch_waits", "batch_request_given_up"]


def test_what_waits_has_no_place_and_what_waits_for_a_place_was_not_let_through(waits):
    async def check() -> None:
        server, places, counts = Server(), asyncio.Semaphore(1), LineCounts()
        own = Attempts(BATCH, server)
        waiting = begin(own, 1, "a", Place(places, counts))
        await until_asked(server, 1)
        await asyncio.wait_for(places.acquire(), 10)  # another batch's line is answered for long
        assert counts.num_running == 0
        num_asked = len(server.asked)
        tasks = [begin(own, number, "a", Place(asyncio.Semaphore(1), counts)) for number in (2, 3)]
        await until_asked(server, num_asked + 2)
        await asyncio.wait((waiting,), timeout=0.1)  # ten times what is waited for an attempt
        assert len(server.asked) == num_asked + 2
        server.served = {"a"}
        places.release()
        await asyncio.wait_for(asyncio.gather(waiting, *tasks), 10)
        assert len(server.asked) == num_asked + 5

    asyncio.run(check())
