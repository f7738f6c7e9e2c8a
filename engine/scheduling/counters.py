"""What the scheduler counts from the start on; what is there now is counted where it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.scheduling.sequence import Sequence


@dataclass(slots=True)
class Counters:
    """Totals; each is explained in `engine.statistics.EngineStatistics`."""

    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_pauses: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0

    def note_lookup(self, sequence: Sequence) -> None:
        """Count the prompt of one that was admitted, and what of it was found in the cache."""
        if sequence.params.prompt_logprobs is None:  # of whose prompt nothing is looked up
            self.prefix_cache_queries += sequence.num_prompt_tokens
        self.prefix_cache_hits += sequence.num_computed_tokens

    def reset(self) -> None:
        """Begin anew."""
        for each in fields(self):
            setattr(self, each.name, 0)
