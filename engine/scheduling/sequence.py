"""One generation: what was asked, what was produced, and how far it got.

Only facts and counts; who runs next is `scheduler`'s to decide, and only it changes a sequence.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import BlockAccountingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.constraint import Constraint
    from engine.sampling_params import SamplingParams
    from engine.scheduling.caller import Caller
    from engine.scheduling.drafting import NgramDrafter
    from engine.scheduling.mask_reader import PendingMasks


class SequenceState(enum.Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  # holds nothing; new, or preempted
    RUNNING = "running"  # holds a slot and blocks
    PAUSED = "paused"  # gave its slot to a caller who had had less; holds its blocks
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
    caller: Caller
    priority: int = 0  # lower runs first
    is_background: bool = False  # runs beside others in few steps, and gives way to them
    arrival: int = 0  # a number that grows; ties are broken by it
    deadline: float | None = None  # on the scheduler's clock
    root_digest: bytes = b""  # of its prefixes
    constraint: Constraint | None = None
    drafter: NgramDrafter | None = None

    state: SequenceState = SequenceState.WAITING
    output_token_ids: list[int] = field(default_factory=list)  # collected
    num_computed_tokens: int = (
        0  # whose keys and values are cached, or being written by a launched step
    )
    num_charged_tokens: int = 0  # that its caller has been charged for
    num_steps_in_flight: int = 0  # launched with this sequence in them, not yet collected
    num_samples_in_flight: int = 0  # tokens being sampled by them
    is_decoding: bool = False  # its slot holds its last token, sampled or being sampled
    has_started: bool = False  # left the queue at least once
    is_announced: bool = False  # that it did was told
    arrived_at: float = 0.0  # on the scheduler's clock
    queue_s: float | None = None  # from there until it first left the queue; None until then
    is_suspect: bool = False  # its blocks may hold NaN, or nothing at all
    num_retractions: int = 0  # steps with it that ran out of memory
    num_reported_prompt_logprobs: int = 0
    slot: int | None = None  # its row in the runner's resident state
    block_digests: list[bytes] = field(default_factory=list)  # of its first full blocks
    are_masks_slow: bool = False  # its constraint's last one took long
    is_forcing_slow: bool = False  # asking its constraint for what it demands once took long
    masks_ahead: PendingMasks | None = None  # of its next step, which goes without it until then
    is_draft_forced: bool = False  # what it has launched to verify follows from its constraint
    num_cached_prompt_tokens: int = 0  # computed for others before it was first admitted
    num_registered_blocks: int = 0  # of them that were offered to the prefix cache
    is_shared: bool = True  # False once its prompt was cut where others' are not, see `pieces`

    end_token_ids: frozenset[int] = field(init=False)
    is_watched: bool = field(init=False)  # may need its last token read before each step

    def __post_init__(self) -> None:
        """Work out once what every step asks."""
        self.end_token_ids = self.params.end_token_ids
        self.is_watched = (
            self.constraint is not None or bool(self.params.bad_words) or self.drafter is not None
        )

    @property
    def num_prompt_tokens(self) -> int:
        """How many tokens it began with."""
        return len(self.prompt_token_ids)

    @property
    def num_known_tokens(self) -> int:
        """How many tokens have been collected, prompt included."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def needs_last_token(self) -> bool:
        """Whether its next step cannot be planned before its last token has been read."""
        return (
            self.constraint is not None
            or bool(self.params.bad_words)
            or (self.drafter is not None and self.drafter.is_active)
        )

    def known_token_ids(self, start: int, stop: int) -> tuple[int, ...]:
        """Return a stretch of prompt and answer."""
        num_prompt = len(self.prompt_token_ids)
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        outputs = self.output_token_ids[max(0, start - num_prompt) : stop - num_prompt]
        return (*self.prompt_token_ids[start:], *outputs)


def turn_of(sequence: Sequence) -> tuple[bool, int, int]:
    """Return what sequences are sorted by: the background last, by priority, then the older."""
    return sequence.is_background, sequence.priority, sequence.arrival


def last_in_turn(sequences: Iterable[Sequence]) -> Sequence:
    """Return who gives way first: the lowest in priority, then the youngest."""
    return max(sequences, key=turn_of)


def first_to_go(paused: Iterable[Sequence], running: Iterable[Sequence]) -> Sequence:
    """Return who gives its blocks back first: of the background, then one without a slot."""
    groups = list(paused), list(running)
    background = ([each for each in group if each.is_background] for group in groups)
    return last_in_turn(next(group for group in (*background, *groups) if group))


def slot_of(sequence: Sequence) -> int:
    """Return the slot of a sequence that runs."""
    if sequence.slot is None:
        raise BlockAccountingError(f"sequence {sequence.sequence_id} runs without a slot")
    return sequence.slot
