"""Takes in what a launched step sampled, and says what each sequence got: tokens or an end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import (
    EngineError,
    InvalidConstraintError,
    NoCandidatesError,
    NonFiniteLogitsError,
)
from engine.outputs import (
    FinishReason,
    PromptLogprobs,
    SequenceFailure,
    SequenceStarted,
    StepOutput,
    TokenOutput,
)
from engine.scheduling.sequence import SequenceState

if TYPE_CHECKING:
    from engine.outputs import TokenLogprobs
    from engine.scheduling.batch import SampledTokens, ScheduledBatch, ScheduledChunk
    from engine.scheduling.counters import Counters
    from engine.scheduling.residency import Residency
    from engine.scheduling.sequence import Sequence


class OutputProcessor:
    """Advances sequences by what was sampled for them, and ends those that are done."""

    def __init__(self, residency: Residency, counters: Counters) -> None:
        self._residency = residency
        self._counters = counters

    def process(self, batch: ScheduledBatch, sampled: SampledTokens) -> list[StepOutput]:
        """Take in one step."""
        outputs: list[StepOutput] = []
        sequences = self._residency.sequences
        bad = sampled.failed | sampled.no_candidates
        token_ids, logprobs = sampled.token_ids, sampled.logprobs
        for sequence_id in batch.decodes.sequence_ids:
            sequence = sequences[sequence_id]
            sequence.num_steps_in_flight -= 1
            sequence.num_samples_in_flight -= 1
            if sequence.state is SequenceState.ENDED:
                self._release(sequence, sampled)
            elif sequence_id in bad:
                outputs.append(self.fail(sequence, _error_of(sequence, sampled)))
            else:
                theirs = logprobs.get(sequence_id) if logprobs else None
                self._append(sequence, token_ids[sequence_id], theirs, outputs)
        for chunk in batch.chunks:
            self._process_chunk(chunk, sampled, outputs)
        return outputs

    def _release(self, sequence: Sequence, sampled: SampledTokens) -> None:
        """Let an ended sequence go, whose last steps nobody waited for."""
        if sequence.sequence_id in sampled.failed:
            sequence.is_suspect = True
        self._residency.release_if_idle(sequence)

    def fail(self, sequence: Sequence, error: EngineError) -> SequenceFailure:
        """End a sequence with an error."""
        if isinstance(error, NonFiniteLogitsError):
            sequence.is_suspect = True
        self._residency.end(sequence)
        return SequenceFailure(sequence.sequence_id, error)

    def _process_chunk(
        self, chunk: ScheduledChunk, sampled: SampledTokens, outputs: list[StepOutput]
    ) -> None:
        sequence_id = chunk.sequence_id
        sequence = self._residency.sequences[sequence_id]
        sequence.num_steps_in_flight -= 1
        if chunk.num_samples:
            sequence.num_samples_in_flight -= 1
        if sequence.state is SequenceState.ENDED:
            self._release(sequence, sampled)
            return
        token_ids = sampled.token_ids.get(sequence_id, ())
        has_dead_end = sequence_id in sampled.no_candidates
        if sequence_id in sampled.failed or (has_dead_end and not token_ids):
            outputs.append(self.fail(sequence, _error_of(sequence, sampled)))
            return
        if not sequence.is_announced:
            sequence.is_announced = True
            outputs.append(
                SequenceStarted(
                    sequence_id, sequence.num_cached_prompt_tokens, sequence.queue_s or 0.0
                )
            )
        if chunk.prompt_targets is not None:
            _report_prompt_logprobs(sequence, chunk, sampled, outputs)
        if not chunk.num_samples:
            return
        if chunk.num_drafts:
            num_accepted = len(token_ids) - (0 if has_dead_end else 1)
            self._keep_accepted(sequence, chunk, num_accepted)
        theirs = sampled.logprobs.get(sequence_id)
        has_ended = self._append(sequence, token_ids, theirs, outputs)
        # Behind the token that completes a form nothing may come, and nothing needs to.
        if has_dead_end and not has_ended:
            outputs.append(self.fail(sequence, _error_of(sequence, sampled)))

    def _keep_accepted(self, sequence: Sequence, chunk: ScheduledChunk, num_accepted: int) -> None:
        """Forget what was computed for the drafts that were not accepted."""
        self._counters.num_accepted_tokens += num_accepted
        if sequence.state is SequenceState.RUNNING:
            num_tokens = len(chunk.token_ids) - chunk.num_drafts
            sequence.num_computed_tokens = chunk.start + num_tokens + num_accepted
        if sequence.drafter is not None and not sequence.is_draft_forced:
            sequence.drafter.judge(chunk.num_drafts, num_accepted)

    def _append(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...] | None,
        outputs: list[StepOutput],
    ) -> bool:
        """Add tokens up to the one that ends the sequence; return whether one did."""
        for index, token_id in enumerate(token_ids):
            sequence.output_token_ids.append(token_id)
            self._counters.num_generated_tokens += 1
            reason = _finish_reason(sequence, token_id)
            outputs.append(
                TokenOutput(
                    sequence.sequence_id,
                    token_id,
                    logprobs[index] if logprobs else None,
                    reason,
                )
            )
            if reason is not None:
                self._residency.end(sequence)
                return True
        if sequence.drafter is not None:
            sequence.drafter.extend(token_ids)
        return False


def _report_prompt_logprobs(
    sequence: Sequence, chunk: ScheduledChunk, sampled: SampledTokens, outputs: list[StepOutput]
) -> None:
    """Report prompt tokens, but not again where a preempted sequence reads its prompt anew."""
    found = sampled.prompt_logprobs[chunk.sequence_id]
    fresh = found[max(0, sequence.num_reported_prompt_logprobs - chunk.start) :]
    if fresh:
        sequence.num_reported_prompt_logprobs += len(fresh)
        outputs.append(PromptLogprobs(sequence.sequence_id, fresh))


def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    constraint = sequence.constraint
    is_cut = constraint is not None and constraint.was_cut
    if token_id in sequence.end_token_ids:
        return FinishReason.LENGTH if is_cut else FinishReason.STOP
    if constraint is not None:
        constraint.advance(token_id)
        if constraint.is_complete:
            return FinishReason.LENGTH if is_cut else FinishReason.STOP
    if len(sequence.output_token_ids) >= sequence.max_output_tokens:
        return FinishReason.LENGTH
    return None


def _error_of(sequence: Sequence, sampled: SampledTokens) -> EngineError:
    """Say why a sequence has no next token."""
    if sequence.sequence_id not in sampled.failed:
        constraint = sequence.constraint
        if constraint is not None and constraint.failure is not None:
            return InvalidConstraintError(constraint.failure)
        return NoCandidatesError(
            f"no token was left to pick after {len(sequence.output_token_ids)} generated ones:"
            " what is allowed, banned and asked for by the grammar excludes every one"
        )
    return NonFiniteLogitsError(
        f"the model gave NaN or Inf after {sequence.num_prompt_tokens} prompt tokens and"
        f" {len(sequence.output_token_ids)} generated ones; the checkpoint or its kernel is at"
        " fault"
    )
