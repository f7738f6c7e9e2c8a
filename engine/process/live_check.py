"""The self-test that goes on while an engine runs: one part between two steps, or while it is idle.

What a part is, and how it is checked, is `LiveCheck`'s to know, which whoever builds the engine
brings along; when the next one is looked at follows from `check_pace`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import structlog

from engine.errors import LiveCheckError, NonFiniteLogitsError
from engine.outputs import SequenceFailure, TokenOutput
from engine.process.check_pace import CheckPace
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
    """A part that computes wrongly."""

    reason: str  # names the layer and its kernel
    start_failure: EncodedStartFailure  # what the next engine may do without


class LiveCheck(Protocol):
    """Compares the layers that the engine runs with what they were made of, part by part."""

    @property
    def num_parts(self) -> int:
        """How many make a full round; more than none."""

    @property
    def problem(self) -> str | None:
        """Why nothing can be checked any more, as where the files are gone; None while it can."""

    def check_next(self) -> LiveCheckFailure | None:
        """Check the next part, round after round; None where nothing is wrong with it."""


class LiveCheckRunner:
    """Makes an engine's live check when its time has come, and tells what it finds."""

    def __init__(
        self,
        check: LiveCheck,
        send: Callable[[EngineEvent], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """send: tells the client something. clock: in seconds."""
        self._check = check
        self._send = send
        self._clock = clock
        self._pace = CheckPace(check.num_parts, clock)
        self._watch = RepetitionWatch(clock)
        self._statistics = LiveCheckStatistics(num_layers=check.num_parts)
        self._round_began = self._reported = clock()

    def wait_s(self, *, has_work: bool) -> float | None:
        """Return the seconds until the next part is due; None where there is nothing to check."""
        if self._check.problem is not None:
            return None
        return self._pace.wait_s(has_work=has_work)

    def run_if_due(self, *, has_work: bool) -> None:
        """Check a part if its time has come, or several where that is urgent.

        Raises LiveCheckError where one computes wrongly.
        """
        began = self._clock()
        while self.wait_s(has_work=has_work) == 0:
            self._run()
            if self._clock() - began >= self._pace.slice_s:
                return

    def _run(self) -> None:
        started, cpu_started = self._clock(), time.thread_time()
        failure = self._check.check_next()
        ended, cpu_s = self._clock(), time.thread_time() - cpu_started
        if failure is not None:
            raise LiveCheckError(failure.reason, start_failure=failure.start_failure)
        self._pace.note_part(started, ended, cpu_s)
        self._count(ended)

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

    def _count(self, now: float) -> None:
        statistics = replace(self._statistics, problem=self._check.problem)
        if statistics.problem is None:
            statistics = replace(statistics, num_checked=statistics.num_checked + 1)
        is_round_over = statistics.num_checked == (
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
