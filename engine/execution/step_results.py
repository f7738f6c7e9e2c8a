"""What a step gave, on its way to the host.

On a GPU the copies are part of the step: into pinned memory of its own, with an event behind them.
So who reads step N waits for that event and for nothing else, even with N+1 queued behind it; and
N+1 may overwrite the tensors that it shares with N, as graphs do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.execution.pinned import Sections
from engine.sampling.logprobs import RowLogprobs, to_prompt_logprobs, to_token_logprobs
from engine.sampling.sampler import SampledRows
from engine.scheduling.batch import SampledTokens
from engine.scheduling.drafting import num_accepted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from engine.execution.pinned import HostMemory, Section
    from engine.outputs import TokenLogprobs
    from engine.scheduling.batch import ScheduledBatch

# One being read, one that runs, one that is being launched.
NUM_SECTIONS = 3
_BYTES_PER_ROW = 1024  # a token, its flags, and some twenty leading tokens


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed."""

    rows: SampledRows | None  # one for each decode, then each sample of each chunk; None of none
    num_logprobs: tuple[int | None, ...]  # leading tokens that each row asks for
    prompt_logprobs: Mapping[int, RowLogprobs]  # by sequence id


class ResultSections:
    """Pinned memory that steps' results are copied to, a section a step."""

    def __init__(self, memory: HostMemory, max_num_seqs: int) -> None:
        self._sections = Sections(
            memory, _BYTES_PER_ROW * max_num_seqs, count=NUM_SECTIONS, name="steps' results"
        )

    @property
    def num_growths(self) -> int:
        """How often a section was too small."""
        return self._sections.num_growths

    def hold(self, step: StepResult) -> HeldResult:
        """Queue the copies of a step's results, as its last work."""
        section = self._sections.next()
        held = StepResult(
            None if step.rows is None else _copy_rows(step.rows, section),
            step.num_logprobs,
            {
                sequence_id: _copy_logprobs(rows, section)
                for sequence_id, rows in step.prompt_logprobs.items()
            },
        )
        section.end()
        return HeldResult(held, section)


class HeldResult:
    """A step's results in the host's memory, once the device has come so far."""

    def __init__(self, step: StepResult, section: Section) -> None:
        self._step = step
        self._section = section
        self._use = section.num_uses

    def read(self) -> StepResult:
        """Wait for the step, not for what is queued behind it."""
        self._section.event.synchronize()
        if self._section.num_uses != self._use:
            raise RuntimeError(
                f"{NUM_SECTIONS} steps were launched since; read a step before its memory is used"
            )
        return self._step


def _copy_rows(rows: SampledRows, section: Section) -> SampledRows:
    return SampledRows(
        tokens=_copy(rows.tokens, section),
        is_finite=_copy(rows.is_finite, section),
        has_choice=_copy(rows.has_choice, section),
        logprobs=None if rows.logprobs is None else _copy_logprobs(rows.logprobs, section),
    )


def _copy_logprobs(rows: RowLogprobs, section: Section) -> RowLogprobs:
    return RowLogprobs(
        _copy(rows.picked, section), _copy(rows.top_ids, section), _copy(rows.top, section)
    )


def _copy(values: Tensor, section: Section) -> Tensor:
    return section.take(values.shape, values.dtype).copy_(values, non_blocking=True)


def read_result(batch: ScheduledBatch, step: StepResult) -> SampledTokens:
    """Sort rows into sequences, and cut drafts off where they were not what was sampled.

    Also before a row that left nothing to pick, as behind the token that completes a form: what
    came before it counts. step: in the host's memory.
    """
    told = {
        sequence_id: to_prompt_logprobs(rows) for sequence_id, rows in step.prompt_logprobs.items()
    }
    if step.rows is None:
        return SampledTokens({}, prompt_logprobs=told)
    tokens = step.rows.tokens.tolist()
    token_ids: dict[int, tuple[int, ...]] = {}
    rows_of: dict[int, tuple[int, int]] = {}  # first and last that count
    for row, sequence_id in enumerate(batch.decodes.sequence_ids):
        token_ids[sequence_id] = (tokens[row],)
        rows_of[sequence_id] = row, row + 1
    row = len(batch.decodes)
    for chunk in batch.chunks:
        if chunk.num_samples:
            stop = row + 1 + num_accepted(chunk.drafts, tokens[row:])
            token_ids[chunk.sequence_id] = tuple(tokens[row:stop])
            rows_of[chunk.sequence_id] = row, stop
            row += chunk.num_samples
    failed = _sequences_with_any(~step.rows.is_finite, rows_of)
    no_candidates = _cut_before_dead_ends(step.rows.has_choice, token_ids, rows_of)
    return SampledTokens(token_ids, failed, no_candidates, _read_logprobs(step, rows_of), told)


def _cut_before_dead_ends(
    has_choice: Tensor,
    token_ids: dict[int, tuple[int, ...]],
    rows_of: dict[int, tuple[int, int]],
) -> frozenset[int]:
    """Leave the tokens before the first row that has none; return whose were cut.

    has_choice: [rows] bool.
    """
    if bool(has_choice.all()):
        return frozenset()
    rows = has_choice.tolist()
    cut = set()
    for sequence_id, (start, stop) in rows_of.items():
        if not all(rows[start:stop]):
            cut.add(sequence_id)
            num_picked = rows[start:stop].index(False)
            token_ids[sequence_id] = token_ids[sequence_id][:num_picked]
            rows_of[sequence_id] = start, start + num_picked
    return frozenset(cut)


def _sequences_with_any(marked: Tensor, rows_of: Mapping[int, tuple[int, int]]) -> frozenset[int]:
    """Find the sequences of which a row is marked; marked: [rows] bool."""
    if not bool(marked.any()):
        return frozenset()
    rows = marked.tolist()
    return frozenset(
        sequence_id for sequence_id, (start, stop) in rows_of.items() if any(rows[start:stop])
    )


def _read_logprobs(
    step: StepResult, rows_of: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[TokenLogprobs, ...]]:
    if step.rows is None or step.rows.logprobs is None:
        return {}
    reported = to_token_logprobs(step.rows.logprobs, step.num_logprobs)
    found = {
        sequence_id: tuple(row for row in reported[start:stop] if row is not None)
        for sequence_id, (start, stop) in rows_of.items()
    }
    return {sequence_id: rows for sequence_id, rows in found.items() if rows}
