"""One generation: what was asked, what was produced, and how far it got.

Only facts and counts; who runs next is `scheduler`'s to decide, and only it changes a sequence.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sampling_params import SamplingParams


class SequenceState(enum.Enum):
    """Where a sequence stands; it only moves downwards."""

    WAITING = "waiting"  # holds nothing
    RUNNING = "running"  # holds a slot and blocks
    ENDED = (
        "ended"  # takes no more tokens; holds its blocks while a launched step still writes to them
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One generation, from its prompt to its last token."""

    sequence_id: int
    prompt_token_ids: tuple[int, ...]  # at least one
    params: SamplingParams
    seed: int  # of its random stream: the one asked for, or a fresh one
    max_output_tokens: int  # what max_tokens and the model's context leave, at least 1
    caller: str | None = None  # on whose behalf it runs

    state: SequenceState = SequenceState.WAITING
    output_token_ids: list[int] = field(default_factory=list)  # collected
    num_computed_tokens: int = (
        0  # whose keys and values are cached, or being written by a launched step
    )
    num_steps_in_flight: int = 0  # launched with this sequence in them, not yet collected
    slot: int | None = None  # its row in the runner's resident state

    @property
    def max_num_tokens(self) -> int:
        """How many tokens it can grow to, prompt included."""
        return len(self.prompt_token_ids) + self.max_output_tokens

    @property
    def num_launched_outputs(self) -> int:
        """How many of its tokens are sampled, or being sampled by a launched step."""
        if self.num_computed_tokens == 0:
            return 0
        return self.num_computed_tokens - len(self.prompt_token_ids) + 1
