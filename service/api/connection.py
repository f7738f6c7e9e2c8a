"""Lets work go on only as long as somebody is there for its result."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from service.errors import ClientGoneError, CutOffError
from service.server.lifecycle import RETRY_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Receive

    from service.server.lifecycle import Lifecycle

T = TypeVar("T")


async def while_connected(
    work: Coroutine[object, object, T], receive: Receive, lifecycle: Lifecycle
) -> T:
    """Return what `work` returns; cancel it, and wait until it has let go, once it is in vain.

    receive: of a request whose body has been read. Raises ClientGoneError when the client leaves,
    CutOffError when the process stops before the work is done.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_until_gone(receive))
    try:
        with lifecycle.work(task):
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the client left before its answer was complete")
        if task.cancelled():
            raise CutOffError(
                "the server is stopping and cut this answer off", retry_after_s=RETRY_AFTER_S
            )
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
