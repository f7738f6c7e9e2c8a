"""Who waits to be told whether an engine's accounting is right; answers come in order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.errors import EngineDeadError
    from engine.transport.wire import IntegrityReport


class IntegrityQuestions:
    """The questions that were sent and not answered yet."""

    def __init__(self) -> None:
        self._asked: deque[asyncio.Future[IntegrityReport]] = deque()

    def ask(self) -> asyncio.Future[IntegrityReport]:
        """Note that one was sent; return its answer to come."""
        answer: asyncio.Future[IntegrityReport] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        return answer

    def answer(self, report: IntegrityReport) -> None:
        """Answer the oldest."""
        asked = self._asked.popleft()
        if not asked.done():  # whoever asked may have gone
            asked.set_result(report)

    def fail(self, error: EngineDeadError) -> None:
        """Tell all that no answer will come."""
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(error)
