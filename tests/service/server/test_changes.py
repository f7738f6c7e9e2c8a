"""Waiting for a change instead of looking for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.server.changes import Changes

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


async def turns() -> None:
    """Let every task run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_waits_looks_at_once_and_then_only_when_something_changed():
    async def test() -> None:
        changes, looks, is_so = Changes(), [], False

        def look() -> bool:
            looks.append(is_so)
            return is_so

        waiting = asyncio.create_task(changes.until(look))
        await turns()
        assert looks == [False]
        changes.announce()
        await turns()
        assert looks == [False, False]
        is_so = True
        await turns()
        assert not waiting.done()
        changes.announce()
        assert await waiting

    run(test())


def test_what_holds_already_is_not_waited_for():
    async def test() -> None:
        assert await Changes().until(lambda: True, limit_s=0)

    run(test())


def test_wait_has_its_limit_and_leaves_nothing_behind():
    async def test() -> None:
        changes = Changes()
        assert not await changes.until(lambda: False, limit_s=0.01)
        given_up = asyncio.create_task(changes.until(lambda: False))
        await turns()
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert changes._waiting == set()
        changes.announce()  # and nobody minds

    run(test())


def test_several_wait_for_different_things_and_a_change_is_passed_on():
    async def test() -> None:
        one, all_of_them, count = Changes(), Changes(), 0
        one.listen(all_of_them.announce)
        waiting = [
            asyncio.create_task(changes.until(lambda least=least: count >= least))
            for changes, least in ((one, 1), (all_of_them, 1), (all_of_them, 2))
        ]
        await turns()
        for count in (1, 2):
            one.announce()
            await turns()
            assert [task.done() for task in waiting] == [True, True, count == 2]

    run(test())
