"""What a caller asks of one generation: how tokens are picked and when it ends.

Plain numbers, checked once here; text (stop strings, templates) stays in the service.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import InvalidSamplingParamsError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Settings of one sequence; immutable, so that it may be shared between sequences."""

    max_tokens: int  # upper bound of generated tokens, at least 1
    temperature: float = 1.0  # 0 picks the most likely token
    top_k: int | None = None  # keep the k most likely tokens; None keeps all
    top_p: float = 1.0  # in (0, 1]; 1 keeps all
    seed: int | None = None  # in [0, 2**63); None takes a fresh one per sequence
    stop_token_ids: frozenset[int] = (
        frozenset()
    )  # end the sequence; emitted with finish_reason STOP

    def __post_init__(self) -> None:
        """Refuse values that no sampler can honour."""
        if self.max_tokens < 1:
            raise InvalidSamplingParamsError(f"max_tokens is {self.max_tokens}; give at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidSamplingParamsError(
                f"temperature is {self.temperature}; give a finite number of at least 0"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InvalidSamplingParamsError(f"top_k is {self.top_k}; give at least 1, or none")
        if not 0 < self.top_p <= 1:
            raise InvalidSamplingParamsError(f"top_p is {self.top_p}; give more than 0, at most 1")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidSamplingParamsError(f"seed is {self.seed}; give 0 to {MAX_SEED}")

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the most likely one."""
        return self.temperature == 0
