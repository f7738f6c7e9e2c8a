"""Parts of a library that one module alone finds replaced.

A test that replaced `asyncio.sleep` itself would replace it for servers of other tests, too,
whose event loops run in threads beside it.
"""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def replace_within(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, library: str, **parts: object
) -> None:
    """Let `module` find these `parts` in the `library` that it imports whole."""
    names = vars(getattr(module, library))
    monkeypatch.setattr(module, library, SimpleNamespace(**(names | parts)))


def note_waits(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, *, num_turns: int = 1
) -> list[float]:
    """Let no time pass where `module` sleeps; return the list that gets how long it would have.

    num_turns: how often others get their turn in the event loop meanwhile.
    """
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        for _ in range(num_turns):
            await asyncio.sleep(0)

    replace_within(monkeypatch, module, "asyncio", sleep=sleep)
    return waits
