"""One of those who share the engine; whose turn it is, is `fair_queue`'s to say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Caller:
    """A name, its weight, and how much it has been served."""

    name: str
    weight: float
    clock: float  # tokens served / weight
    num_sequences: int = 0  # waiting, paused or running

    def charge(self, num_tokens: int) -> None:
        """Move the clock for tokens that it was served."""
        self.clock += num_tokens / self.weight
