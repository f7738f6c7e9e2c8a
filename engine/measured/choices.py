"""What an engine chose by measuring, by name: asked for, kept for the next start, and told.

Whoever has several ways to compute the same asks `fastest`, or, where a choice is more than a name,
measures with the `stopwatch` and notes what came out. Nothing is measured twice on a machine, and
nothing at all where choices are fixed; all of them together take no longer than a budget.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from engine.measured.kept_choices import KeptChoices
from engine.measured.machine import this_machine
from engine.measured.stopwatch import OutOfTimeError, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = structlog.get_logger(__name__)

# Of the 3 s that a start may take longer: one call may end past it, and all is compared once, too.
BUDGET_S = 2.4
# Others took the rest, and may have had one way look slower than another: it is not kept. Calls by
# one thread with a core to itself have 0.99, by two beside two busy processes 0.49 (2026-11).
_LEAST_CPU_SHARE = 0.8


class Source(enum.Enum):
    """Where a choice came from; the values are what the log says."""

    MEASURED = "measured"
    CACHED = "cached"  # measured at an earlier start
    FIXED = "fixed"  # measuring was not wanted
    NOT_IN_TIME = "fixed, not measured in time"
    NEVER_IN_TIME = "fixed, not measured in time at an earlier start either"


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice, in words."""

    told: str
    source: Source


class Choices:
    """The choices of one engine."""

    def __init__(
        self,
        *,
        is_measured: bool,
        folder: Path | None = None,
        budget_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """is_measured: else all are fixed. folder: where choices are kept; None keeps none.

        budget_s: seconds for all that is measured; by default `BUDGET_S`.
        """
        self.is_measured = is_measured
        budget_s = BUDGET_S if budget_s is None else budget_s
        self.stopwatch = Stopwatch(budget_s, clock, cpu_clock)
        self._made: dict[str, Choice] = {}
        self._fresh: dict[str, object] = {}
        self._kept: KeptChoices | None = None
        self._known: dict[str, object] = {}
        if is_measured and folder is not None:
            self._kept = KeptChoices(folder, this_machine())
            self._known = self._kept.read()

    def recall(self, key: str) -> object | None:
        """Return what was kept under a key at an earlier start; None where nothing was."""
        return self._known.get(key)

    def note(self, name: str, told: str, source: Source) -> None:
        """Take down a choice, in words that name all that matters for how sums round."""
        self._made[name] = Choice(told, source)

    def keep(self, key: str, value: object) -> None:
        """Keep what was measured for later starts; value: what JSON can carry."""
        self._fresh[key] = value

    def fastest(self, name: str, calls: Mapping[str, Callable[[], object]]) -> str:
        """Name the call that takes least time; the first where that is not measured.

        name: what is chosen, in words, with all that the answer depends on beside the machine. Each
        call computes the same in its own way, with data of a usual size.
        """
        key = f"{name}: {', '.join(calls)}"
        chosen, source = next(iter(calls)), Source.FIXED
        known = self.recall(key)
        if self.is_measured and isinstance(known, str) and known in calls:
            chosen, source = known, Source.CACHED
        elif self.is_measured:
            try:
                seconds = self.stopwatch.least_seconds(
                    {each: partial(_call, call) for each, call in calls.items()}
                )
            except OutOfTimeError:
                source = Source.NOT_IN_TIME
            else:
                chosen, source = min(seconds, key=seconds.__getitem__), Source.MEASURED
                self.keep(key, chosen)
        self.note(name, chosen, source)
        return chosen

    @property
    def text(self) -> str:
        """All choices in words, in one order; the same wherever the same was chosen."""
        return "; ".join(f"{name}: {self._made[name].told}" for name in sorted(self._made))

    def finish(self) -> None:
        """Keep what is new, and tell in the log what was chosen; nothing where nothing was.

        What was measured while others had the CPU is taken this once.
        """
        self._keep_fresh()
        if not self._made:
            return
        log.info(
            "kernel_ways_chosen",
            table=self.text,
            source=", ".join(sorted({choice.source.value for choice in self._made.values()})),
            seconds=round(self.stopwatch.spent_s, 3),
        )
        late = [name for name, made in self._made.items() if made.source is Source.NOT_IN_TIME]
        if late:
            log.warning(
                "kernel_ways_not_measured",
                choices=sorted(late),
                reason="the time for measuring was over; what is missing is as where it is off",
            )

    def _keep_fresh(self) -> None:
        if self._kept is None or not self._fresh:
            return
        share = self.stopwatch.cpu_share
        if share >= _LEAST_CPU_SHARE:
            self._kept.add(self._fresh)
            return
        log.warning(
            "kernel_choices_not_kept",
            reason=f"others took {1 - share:.0%} of the CPU while ways were measured",
            consequence="the next start measures again, and may choose otherwise",
        )


def _call(call: Callable[[], object], _turn: int) -> object:
    return call()
