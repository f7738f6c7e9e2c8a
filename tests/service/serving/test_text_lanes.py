"""Short texts pass long ones, however many of those there are, and nobody waits in a thread."""

from __future__ import annotations

import asyncio
import threading
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from service.serving.text_lanes import MAX_SHORT, run_in_lane
from service.text.encoding import MAX_AT_ONCE, encode_in_time

LONG = "x" * (MAX_SHORT + 1)


class Backend:
    """Is done with long texts when it is told so."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def encode_batch_fast(
        self, texts: list[str], add_special_tokens: bool
    ) -> list[SimpleNamespace]:
        if texts == [LONG]:
            self.may_end.wait(20)
        return [SimpleNamespace(ids=[len(text)]) for text in texts]


@pytest.fixture
def backend():
    backend = Backend()
    yield backend
    backend.may_end.set()


def encode(backend: Backend, text: str) -> asyncio.Task[list[int]]:
    return asyncio.create_task(run_in_lane(len(text), partial(encode_in_time, backend, text)))


def test_short_text_is_encoded_while_many_long_ones_wait(backend):
    async def run() -> None:
        long = [encode(backend, LONG) for _ in range(MAX_AT_ONCE + 40)]
        await asyncio.sleep(0)  # all of them are on their way
        assert await asyncio.wait_for(encode(backend, "short"), 10) == [5]
        assert not any(task.done() for task in long)
        backend.may_end.set()
        assert await asyncio.gather(*long) == [[len(LONG)]] * len(long)

    asyncio.run(run())


def test_long_texts_leave_a_turn_of_the_tokenizer_and_the_default_threads_free(backend):
    async def run() -> set[str]:
        names: set[str] = set()

        def note() -> None:
            names.add(threading.current_thread().name)
            backend.may_end.wait(20)

        long = [asyncio.create_task(run_in_lane(MAX_SHORT + 1, note)) for _ in range(40)]
        await asyncio.sleep(0)
        others = [asyncio.to_thread(threading.current_thread) for _ in range(40)]
        assert not {thread.name for thread in await asyncio.gather(*others)} & names
        assert not any(task.done() for task in long)
        backend.may_end.set()
        await asyncio.gather(*long)
        return names

    assert len(asyncio.run(run())) <= MAX_AT_ONCE - 1


def test_text_whose_client_has_left_is_not_kept_until_its_turn(backend):
    class Work:
        def __call__(self) -> None:
            """Encode a text of several megabytes."""

    async def run() -> bool:
        first = [encode(backend, LONG) for _ in range(MAX_AT_ONCE)]
        work = Work()
        held = weakref.ref(work)
        left = asyncio.create_task(run_in_lane(MAX_SHORT + 1, work))
        await asyncio.sleep(0)
        del work
        left.cancel()
        await asyncio.wait([left])
        del left
        is_kept = held() is not None
        backend.may_end.set()
        await asyncio.gather(*first)
        return is_kept

    assert not asyncio.run(run())


def test_text_whose_client_has_left_before_its_turn_is_dropped(backend):
    async def run() -> list[str]:
        done: list[str] = []
        first = [encode(backend, LONG) for _ in range(MAX_AT_ONCE)]
        left = asyncio.create_task(run_in_lane(MAX_SHORT + 1, partial(done.append, "left")))
        last = asyncio.create_task(run_in_lane(MAX_SHORT + 1, partial(done.append, "last")))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        backend.may_end.set()
        await asyncio.gather(*first, last)
        return done

    assert asyncio.run(run()) == ["last"]
