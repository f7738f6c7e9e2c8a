"""Parts of a library that one module alone finds replaced.

A test that replaced `asyncio.sleep` itself would replace it for servers of other tests, too,
whose event loops run in threads beside it.
"""

from __future__ import annotations

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
