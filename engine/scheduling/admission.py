"""Decides whether one more sequence may wait: a queue that cannot be served in time helps nobody.

Bounded by sequences, by prompt tokens, and by time: what waits already, at the rate at which
prompts were measured to be read, must not take longer than a new arrival should wait.
"""

from __future__ import annotations

from engine.errors import QueueFullError

_SMOOTHING = 0.2  # share of the newest measurement in the rate
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0


class Admission:
    """What waits, how much may, and how fast it goes."""

    def __init__(
        self,
        *,
        max_queued_seqs: int | None = None,
        max_queued_tokens: int | None = None,
        max_wait_s: float | None = None,
    ) -> None:
        """Bounds of None don't bound."""
        self._max_seqs = max_queued_seqs
        self._max_tokens = max_queued_tokens
        self._max_wait_s = max_wait_s
        self.num_seqs = 0
        self.num_tokens = 0
        self.prefill_tokens_per_s = 0.0  # 0 before anything was measured

    @property
    def wait_s(self) -> float:
        """How long it takes to read what waits; 0 where the rate is not known."""
        rate = self.prefill_tokens_per_s
        return self.num_tokens / rate if rate else 0.0

    def check(self, num_tokens: int, *, has_place: bool = False) -> None:
        """Raise `QueueFullError` if a sequence with so many prompt tokens may not wait.

        has_place: it was counted before, so that others which came since do not keep it out.
        """
        if not self.num_seqs:  # even the longest prompt is served where nothing else waits
            return
        if not has_place and self._max_seqs is not None and self.num_seqs >= self._max_seqs:
            self._refuse(f"{self.num_seqs} sequences wait, at most {self._max_seqs} may")
        if self._max_tokens is not None and self.num_tokens + num_tokens > self._max_tokens:
            self._refuse(
                f"{self.num_tokens} prompt tokens wait and {num_tokens} more would,"
                f" at most {self._max_tokens} may"
            )
        if self._max_wait_s is not None and self.wait_s > self._max_wait_s:
            self._refuse(
                f"what waits takes {self.wait_s:.1f} s to read, at most {self._max_wait_s:g} s may"
            )

    def enter(self, num_tokens: int) -> None:
        """Count a sequence as waiting."""
        self.num_seqs += 1
        self.num_tokens += num_tokens

    def leave(self, num_tokens: int) -> None:
        """Count it as waiting no more."""
        self.num_seqs -= 1
        self.num_tokens -= num_tokens

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Note how long so many prompt tokens took to read."""
        if num_tokens < 1 or seconds <= 0:
            return
        rate = num_tokens / seconds
        known = self.prefill_tokens_per_s
        self.prefill_tokens_per_s = known + _SMOOTHING * (rate - known) if known else rate

    def _refuse(self, reason: str) -> None:
        half = self.wait_s / 2
        raise QueueFullError(
            f"the queue is full: {reason}; try again later",
            retry_after_s=min(max(half, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S),
        )
