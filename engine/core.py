"""The engine: sequences in, tokens out, one step at a time.

`step` is the whole of continuous batching: whoever has arrived joins the next batch, whoever has
ended leaves it. Scheduling is `scheduler`'s, tensors are `model_runner`'s. Not thread-safe;
`client` runs it in a thread of its own.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Protocol

import structlog
import torch

from engine.errors import InvalidConstraintError, OutOfMemoryError
from engine.execution.model_runner import ModelRunner
from engine.limits import SequenceLimits
from engine.scheduling.drafting import NgramDrafter
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from engine.config import EngineConfig
    from engine.constraint import Constraint, ConstraintFactory
    from engine.execution.decode_graphs import Recordings
    from engine.execution.path import ExecutionPath
    from engine.layers.weights import LinearsInUse
    from engine.outputs import StepOutput
    from engine.request import SequenceRequest
    from engine.scheduling.batch import SampledTokens, ScheduledBatch
    from engine.statistics import EngineStatistics

log = structlog.get_logger(__name__)

# So many steps without memory within so many seconds: what is wrong does not go away by itself.
MAX_MEMORY_FAILURES = 3
MEMORY_FAILURE_WINDOW_S = 60.0
# Steps with fewer prompt tokens say little of how fast prompts are read.
MIN_MEASURED_TOKENS = 32


class PendingStep(Protocol):
    """A launched step."""

    batch: ScheduledBatch

    def result(self) -> SampledTokens:
        """Wait for the step and read what it sampled. Raises `OutOfMemoryError`."""


class Runner(Protocol):
    """Runs batches; a few lines of fake are enough to test everything above it."""

    vocab_size: int
    kernel_choices: str  # which of several kernels compute what, in words; empty where one may

    def launch(self, batch: ScheduledBatch) -> PendingStep:
        """Start a step, without waiting for it. Raises `OutOfMemoryError`."""

    def linears(self) -> tuple[LinearsInUse, ...]:
        """Return the linear layers that steps multiply by."""

    def first_layers(self, num_layers: int) -> AbstractContextManager[None]:
        """Run the first layers alone until the end of the block."""

    def recordings(self) -> Recordings:
        """Say what is recorded and replayed, and what should be and is not."""

    def eagerly(self) -> AbstractContextManager[None]:
        """Run every step as it comes until the end of the block."""

    def recording_at_once(self) -> AbstractContextManager[None]:
        """Record every decode step that is wanted until the end of the block."""


class Engine:
    """Advances many sequences over one model together.

    A sequence's tokens don't depend on its mates, nor on chunks, preemption, cached prefixes or
    drafts: exactly, where `is_batch_invariant` is set; elsewhere as far as sums in another order
    leave the leading logits in their order.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: EngineConfig,
        *,
        constraints: ConstraintFactory | None = None,
        path: ExecutionPath | None = None,
    ) -> None:
        """Take a loaded model over: its layers are replaced or redirected, so use it no other way.

        path: how steps run; by default as the device and the configuration have it. Raises
        `UnsupportedArchitectureError`.
        """
        self._begin(ModelRunner(model, config, path), config, constraints, time.monotonic)

    @classmethod
    def with_runner(
        cls,
        runner: Runner,
        config: EngineConfig,
        *,
        constraints: ConstraintFactory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Engine:
        """Make an engine around a runner that is ready; clock: in seconds."""
        engine = cls.__new__(cls)
        engine._begin(runner, config, constraints, clock)
        return engine

    def _begin(
        self,
        runner: Runner,
        config: EngineConfig,
        constraints: ConstraintFactory | None,
        clock: Callable[[], float],
    ) -> None:
        self.limits = SequenceLimits(runner.vocab_size, config.max_model_len)
        self.scheduler = Scheduler(config, clock=clock)
        self._config = config
        self._runner = runner
        self._constraints = constraints
        self._clock = clock
        self._pending: PendingStep | None = None
        self._in_flight: list[ScheduledBatch] = []  # launched and not collected
        self._last_collected = clock()
        self._memory_failures: list[float] = []  # when they were

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        return self.scheduler.has_work or self._pending is not None

    @property
    def kernel_choices(self) -> str:
        """Which of several kernels compute what, in words; empty where there is one for each."""
        return self._runner.kernel_choices

    def linears(self) -> tuple[LinearsInUse, ...]:
        """Return the model's linear layers as steps multiply by them, fused where they are."""
        return self._runner.linears()

    def first_layers(self, num_layers: int) -> AbstractContextManager[None]:
        """Run the model's first layers alone until the end of the block: for a test.

        What is kept of keys and values meanwhile is wrong for anybody else.
        """
        return self._runner.first_layers(num_layers)

    def recordings(self) -> Recordings:
        """Say what is recorded and replayed, and what should be and is not."""
        return self._runner.recordings()

    def eagerly(self) -> AbstractContextManager[None]:
        """Replay nothing that was recorded until the end of the block: for a test."""
        return self._runner.eagerly()

    def recording_at_once(self) -> AbstractContextManager[None]:
        """Record every decode step that is wanted until the end of the block: for a test."""
        return self._runner.recording_at_once()

    def statistics(self) -> EngineStatistics:
        """Count what there is and what was done."""
        return self.scheduler.statistics(num_threads=torch.get_num_threads())

    def compile(self, request: SequenceRequest) -> Constraint | None:
        """Read a request's grammar, if it has one. Raises `InvalidConstraintError`.

        May take long, and may be called from any thread while the engine steps.
        """
        if request.grammar is None:
            return None
        if self._constraints is None:
            raise InvalidConstraintError("this engine was built without structured output")
        params = request.params
        max_tokens = self.limits.max_output_tokens(len(request.prompt_token_ids), params)
        # What the end of a text needs may be banned, of which grammars know nothing.
        may_lack_tokens = bool(
            params.bad_words
            or params.banned_token_ids
            or params.allowed_token_ids is not None
            or 3 * params.min_tokens > max_tokens  # ends are banned up to there
        )
        return self._constraints.compile(
            request.grammar,
            params.eos_token_ids & params.end_token_ids,
            None if may_lack_tokens else max_tokens,
        )

    def add(self, request: SequenceRequest, *, constraint: Constraint | None = None) -> Sequence:
        """Queue a sequence. Raises an `InvalidRequestError` or `QueueFullError`.

        constraint: what the request's grammar was compiled to; compiled here where it is absent.
        """
        self.limits.check(request.prompt_token_ids, request.params)
        params = request.params
        sequence = Sequence(
            sequence_id=request.sequence_id,
            prompt_token_ids=request.prompt_token_ids,
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            max_output_tokens=self.limits.max_output_tokens(len(request.prompt_token_ids), params),
            caller=self.scheduler.caller(
                request.caller, request.weight, is_background=request.is_background
            ),
            priority=request.priority,
            is_background=request.is_background,
            constraint=constraint or self.compile(request),
            drafter=(
                NgramDrafter(request.prompt_token_ids)
                if self._config.num_speculative_tokens
                else None
            ),
        )
        if not self.scheduler.has_work:
            self._last_collected = self._clock()
        self.scheduler.add(
            sequence,
            cache_salt=request.cache_salt,
            group=request.group,
            timeout_s=request.timeout_s,
        )
        return sequence

    def abort(self, sequence_id: int) -> None:
        """End a sequence without further output; unknown or ended ones are left alone."""
        self.scheduler.abort(sequence_id)

    def step(self) -> list[StepOutput]:
        """Launch the next batch, then collect the one before it."""
        outputs = self.scheduler.expire()
        try:
            if self.scheduler.must_collect_first:
                outputs += self._collect(self._pending)
                self._pending = None
            finished, self._pending = self._pending, self._launch_next()
            outputs += self._collect(finished)
        except OutOfMemoryError as error:
            outputs += self._retract(error)
        return outputs

    def _launch_next(self) -> PendingStep | None:
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        self._in_flight.append(batch)
        return self._runner.launch(batch)

    def _collect(self, pending: PendingStep | None) -> list[StepOutput]:
        """Wait for a launched step, and take in what it gave."""
        if pending is None:  # first step after a pause, or nothing to run
            return []
        sampled = pending.result()
        self._in_flight.remove(pending.batch)
        self._measure(pending.batch)
        return self.scheduler.update(pending.batch, sampled)

    def _measure(self, batch: ScheduledBatch) -> None:
        """Note how fast prompts are read, where a step read enough of them to tell."""
        now = self._clock()
        num_tokens = sum(len(chunk.token_ids) for chunk in batch.chunks)
        if num_tokens >= MIN_MEASURED_TOKENS:
            self.scheduler.admission.measure(num_tokens, now - self._last_collected)
        self._last_collected = now

    def _retract(self, error: OutOfMemoryError) -> list[StepOutput]:
        """Have the launched steps computed again in smaller ones; give up when that is in vain."""
        now = self._clock()
        log.warning("step_out_of_memory", reason=str(error))
        recent = [at for at in self._memory_failures if now - at < MEMORY_FAILURE_WINDOW_S]
        self._memory_failures = [*recent, now]
        if len(self._memory_failures) >= MAX_MEMORY_FAILURES:
            raise error
        batches, self._in_flight, self._pending = self._in_flight, [], None
        return self.scheduler.retract(batches)
