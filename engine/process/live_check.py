"""The self-test that goes on while an engine runs: one part between two steps, or while it is idle.

What a part is, and how it is checked, is `LiveCheck`'s to know, which whoever builds the engine
brings along; when the next one is looked at follows from `check_pace`.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import structlog

from engine.errors import LiveCheckError, NonFiniteLogitsError
from engine.outputs import SequenceFailure, TokenOutput
from engine.process.check_pace import CheckPace
from engine.process.part_reader import PartReader
from engine.process.repetition_watch import RepetitionWatch
from engine.statistics import LiveCheckStatistics
from engine.transport.wire import LiveCheckReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.encoded import EncodedStartFailure
    from engine.outputs import StepOutput
    from engine.request import SequenceRequest
    from engine.transport.wire import EngineEvent

log = structlog.get_logger(__name__)

REPORT_INTERVAL_S = 5.0  # how often the client is told, beside the end of each round


@dataclass(frozen=True, slots=True)
class LiveCheckFailure:
    """A part whose products are not what its files say."""

    reason: str  # names the layer and its kernel
    start_failure: EncodedStartFailure  # what the next engine may do without


class PartOutcome(enum.Enum):
    """What came of a part that did not fail."""

    PASSED = enum.auto()
    SKIPPED = enum.auto()  # nothing was compared, as where memory was short


# Compares a part that was read; in the thread that steps the engine, and without waiting for files.
ComparePart: TypeAlias = "Callable[[], LiveCheckFailure | PartOutcome]"


class LiveCheck(Protocol):
    """Compares the layers that the engine runs with what they were made of, part by part."""

    @property
    def num_parts(self) -> int:
        """How many make a full round; more than none."""

    @property
    def problem(self) -> str | None:
        """Why nothing can be checked any more, as where the files are gone; None while it can."""

    def read_next(self) -> ComparePart:
        """Read the next part, round after round; in any thread, as files may keep it waiting."""


class LiveCheckRunner:
    """Makes an engine's live check when its time has come, and tells what it finds."""

    def __init__(
        self,
        check: LiveCheck,
        send: Callable[[EngineEvent], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """send: tells the client something. clock: in seconds.

        wake: called in another thread when a part that was waited for may be compared.
        """
        self._check = check
        self._send = send
        self._clock = clock
        self._reader = PartReader(check.read_next, wake, clock)
        self._pace = CheckPace(check.num_parts, clock)
        self._watch = RepetitionWatch(clock)
        self._statistics = LiveCheckStatistics(num_layers=check.num_parts)
        self._round_began = self._reported = clock()

    def wait_s(self, *, has_work: bool) -> float | None:
        """Return the seconds until there is something to do; None: until a part has been read.

        None, too, where nothing can be checked any more.
        """
        if self._check.problem is not None:
            return None
        if not self._reader.is_free:
            return 0.0 if self._reader.is_read else None
        return self._pace.wait_s(has_work=has_work)

    def run_if_due(self, *, has_work: bool) -> None:
        """Have a part read if its time has come; compare it once it is, without waiting for it.

        Several where that is urgent. Raises LiveCheckError where one fails.
        """
        began = self._clock()
        while self.wait_s(has_work=has_work) == 0:
            if self._reader.is_free:
                self._reader.begin()
            else:
                self._compare()
            if self._clock() - began >= self._pace.slice_s:
                return

    def close(self) -> None:
        """Have nothing read any more."""
        self._reader.close()

    def _compare(self) -> None:
        reading = self._reader.take()
        if isinstance(reading.result, Exception):
            raise reading.result
        started, cpu_started = self._clock(), time.thread_time()
        outcome = reading.result()
        ended, cpu_s = self._clock(), time.thread_time() - cpu_started
        if isinstance(outcome, LiveCheckFailure):
            raise LiveCheckError(outcome.reason, start_failure=outcome.start_failure)
        # Slow files are read seldom, though waiting for them takes nothing of a core.
        read_s = max(reading.wall_s, reading.cpu_s)
        self._pace.note_part(reading.started, read_s + ended - started, read_s + cpu_s)
        self._count(outcome, ended)

    def begin(self, request: SequenceRequest) -> None:
        """Take in that a sequence is to run."""
        self._watch.begin(request)

    def drop(self, sequence_id: int) -> None:
        """Take in that a sequence was given up."""
        self._watch.drop(sequence_id)

    def look_at(self, outputs: Sequence[StepOutput]) -> None:
        """Look for signs of a broken layer in what a step gave; a round is made at once on one."""
        self._pace.note_step()
        for output in outputs:
            if isinstance(output, TokenOutput):
                if (token_id := self._watch.take_in(output)) is not None:
                    self._hurry(f"requests of several callers repeat token {token_id}")
            elif isinstance(output, SequenceFailure):
                self._watch.drop(output.sequence_id)
                if isinstance(output.error, NonFiniteLogitsError):
                    self._hurry("logits were NaN or infinite")

    def _hurry(self, reason: str) -> None:
        if self._check.problem is None and self._pace.hurry():
            log.warning("live_check_at_once", reason=reason)

    def _count(self, outcome: PartOutcome, now: float) -> None:
        statistics = replace(self._statistics, problem=self._check.problem)
        if outcome is PartOutcome.PASSED:
            statistics = replace(statistics, num_checked=statistics.num_checked + 1)
        elif statistics.problem is None:
            statistics = replace(statistics, num_skipped=statistics.num_skipped + 1)
        is_round_over = statistics.num_checked + statistics.num_skipped == (
            (statistics.num_rounds + 1) * statistics.num_layers
        )
        if is_round_over:
            statistics = replace(
                statistics,
                num_rounds=statistics.num_rounds + 1,
                last_round_s=round(now - self._round_began, 3),
            )
            self._round_began = now
            log.debug("live_check_round", seconds=statistics.last_round_s)
        self._statistics = statistics
        if is_round_over or statistics.problem or now - self._reported >= REPORT_INTERVAL_S:
            self._reported = now
            self._send(LiveCheckReport(statistics))
