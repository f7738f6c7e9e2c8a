"""What the engine can tell of itself: counts, for people, routers and admission."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """How full the engine is, and what it has done since it began."""

    num_running: int  # sequences with a slot; those of the background are counted apart
    num_waiting: int  # without one: new, paused or preempted
    num_background_running: int = 0
    num_background_waiting: int = 0
    num_queued_seqs: int  # of those in num_waiting, the ones that never ran
    num_queued_tokens: int  # their prompt tokens
    num_free_slots: int  # for sequences that are to begin; those of the background among them
    num_blocks: int
    num_free_blocks: int  # cached ones included
    prefill_tokens_per_s: float  # as last measured; 0 before
    num_threads: int  # that compute one operation on the CPU

    # Since the start
    num_prompt_tokens: int  # of sequences that began
    num_generated_tokens: int
    num_preemptions: int
    num_pauses: int
    prefix_cache_queries: int  # prompt tokens looked up
    prefix_cache_hits: int  # of them found
    num_drafted_tokens: int
    num_accepted_tokens: int  # of the drafted ones


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCheckStatistics:
    """How far the live check of an engine's layers has come."""

    num_layers: int  # parts that a full round checks; a large layer counts as several
    num_checked: int = 0  # parts compared since the engine began
    num_skipped: int = 0  # their turn came, but memory was short; nothing is known of them
    num_rounds: int = 0  # completed ones, in which each part was compared or skipped
    last_round_s: float | None = None  # how long the last full round took, pauses included
    problem: str | None = None  # why nothing can be checked any more


class Histogram:
    """Counts values by upper bounds; a value that equals a bound lies below it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one: above every bound
        self.total = 0.0  # of the values

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def merge(self, other: Histogram) -> None:
        """Count what another one of the same bounds has counted."""
        if other.bounds != self.bounds:
            raise ValueError(f"bounds {other.bounds} do not go into {self.bounds}")
        self.counts = [own + more for own, more in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


# vLLM's own bounds, so that what was drawn for it shows the same.
FIRST_TOKEN_BOUNDS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS_BOUNDS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BOUNDS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


@dataclass(slots=True)
class TokenTimes:
    """When the tokens of one sequence came, by the monotonic clock of whoever asked for them."""

    submitted_at: float
    queue_s: float | None = None  # as the engine tells it; None while it has not begun
    first_at: float | None = None
    last_at: float | None = None
    longest_gap_s: float = 0.0  # between two of them


@dataclass(slots=True)
class Latencies:
    """How long sequences waited and tokens took, over all sequences of one engine."""

    queue: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS_S))
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(BETWEEN_TOKENS_BOUNDS_S))

    def note_start(self, times: TokenTimes, queue_s: float) -> None:
        """Count a sequence that left the queue."""
        times.queue_s = queue_s
        self.queue.add(queue_s)

    def note_token(self, times: TokenTimes, now: float) -> None:
        """Count a token; those that come at the same time count as one."""
        last = times.last_at
        if last is None:
            times.first_at = times.last_at = now
            self.first_token.add(now - times.submitted_at)
            return
        gap = now - last
        if gap <= 0.0:  # accepted drafts
            return
        times.last_at = now
        if gap > times.longest_gap_s:
            times.longest_gap_s = gap
        gaps = self.between_tokens  # not by `add`: a call a token costs as much as all the rest
        gaps.counts[bisect_left(gaps.bounds, gap)] += 1
        gaps.total += gap

    def merge(self, other: Latencies) -> None:
        """Count what another engine's have counted."""
        self.queue.merge(other.queue)
        self.first_token.merge(other.first_token)
        self.between_tokens.merge(other.between_tokens)
