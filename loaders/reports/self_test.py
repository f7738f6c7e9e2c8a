"""What a self-test found, in plain values: for the log, for clients, and for whoever loads next.

Imports nothing that is large: the API's process reads it, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str  # a layer's name, "logits", "first tokens", "repetition"
    passed: bool | None  # None where it could not be made; the detail says why
    detail: str
    worst: float | None = None  # the largest error found, as a share of what is allowed
    backend: str | None = None  # whose product it was


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """The checks of one load."""

    passed: bool
    checks: tuple[Check, ...]
    backend: str  # the kernel backends in use, joined by "+"
    seconds: float
    finished: int  # seconds since 1970

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def suspects(self) -> frozenset[str]:
        """The backends to do without next time: those of failed products, else all in use."""
        caught = {check.backend for check in self.failures if check.backend is not None}
        if caught or self.passed:
            return frozenset(caught)
        return frozenset(self.backend.split("+"))

    def __str__(self) -> str:
        """Say in one line what failed, or that nothing did."""
        if self.passed:
            return f"self-test of {self.backend} passed ({len(self.checks)} checks)"
        failed = "; ".join(f"{check.name}: {check.detail}" for check in self.failures)
        return f"self-test of {self.backend} failed: {failed}"
