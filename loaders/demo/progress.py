"""Who is told how far a build of the demo has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """What to call as a build goes on."""

    on_step: Callable[[str], None]  # a line of text at each step
    on_percent_done: Callable[[float], None]  # of the step, where it takes long


class StepsWithPercent:
    """Says the step again with each percentage of it."""

    def __init__(self, on_progress: Callable[[str, float | None], None], prefix: str = "") -> None:
        self._on_progress = on_progress
        self._prefix = prefix
        self._step = ""

    def begin(self, step: str) -> None:
        """Go on to the next step."""
        self._step = f"{self._prefix}{step}"
        self._on_progress(self._step, None)

    def note(self, percent: float) -> None:
        """Tell how much of the step is done."""
        self._on_progress(self._step, percent)
