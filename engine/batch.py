"""The two hand-overs between scheduler and runner: what to run, and what was sampled.

Plain numbers, frozen: a batch stays as it was launched, whatever becomes of its sequences
meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class ScheduledPrefill:
    """A whole prompt to run; the token that follows it is sampled."""

    sequence_id: int
    slot: int  # row of the runner's resident state that the sampled token goes to
    token_ids: tuple[int, ...]
    block_table: tuple[int, ...]  # at least the blocks that the tokens fill
    params: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class ScheduledDecode:
    """One token further: its input is whatever the step before sampled into the slot."""

    sequence_id: int
    slot: int
    position: int  # of the input token, counted from 0; also how many tokens are cached before it
    block_table: tuple[int, ...]  # at least the blocks up to that position
    params: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """What one step runs; at least one sequence, and no sequence twice."""

    decodes: tuple[ScheduledDecode, ...]
    prefills: tuple[ScheduledPrefill, ...]

    @property
    def entries(self) -> tuple[ScheduledDecode | ScheduledPrefill, ...]:
        """Every sequence of the batch, in the order of its rows."""
        return (*self.decodes, *self.prefills)


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What one step sampled."""

    token_ids: Mapping[
        int, tuple[int, ...]
    ]  # by sequence id, in order; absent where sampling failed
    failed: frozenset[int]  # sequence ids whose logits held NaN or Inf
