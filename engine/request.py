"""What a client submits to an engine, complete: one sequence to generate.

Crosses the process border as it is, so it holds plain values only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import InvalidRequestError
from engine.sampling_params import SamplingParams  # noqa: TC001  decoded by its annotation

MAX_WEIGHT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On whose behalf the sequences of one request run, and how; see `SequenceRequest`."""

    caller: str = ""
    weight: float = 1.0
    priority: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None
    is_background: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """One sequence, and on whose behalf it runs."""

    sequence_id: int  # chosen by the client; new each time
    prompt_token_ids: tuple[int, ...]  # at least one
    params: SamplingParams

    caller: str = ""  # with whom it shares the engine fairly: a key's name, a user's
    weight: float = 1.0  # of the caller: its share against other callers'
    priority: int = 0  # lower runs first, whoever calls; fairness holds among equals

    cache_salt: str = ""  # prefixes are shared only with sequences of the same salt
    group: int | None = None  # of one request: they share their prompt even without a prefix cache
    timeout_s: float | None = None  # seconds from its arrival; then it fails
    grammar: str | None = None  # what the answer must follow; read by the ConstraintFactory
    is_background: bool = False  # runs beside others in few steps, see `scheduling.background`

    def __post_init__(self) -> None:
        """Refuse what no scheduler can honour."""
        if not (math.isfinite(self.weight) and 0 < self.weight <= MAX_WEIGHT):
            raise InvalidRequestError(f"weight is {self.weight}; give more than 0, to {MAX_WEIGHT}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InvalidRequestError(f"timeout_s is {self.timeout_s}; give more than 0, or none")
