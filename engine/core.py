"""The engine: sequences in, tokens out, one step at a time.

`step` is the whole of continuous batching: whoever has arrived joins the next batch, whoever has
ended leaves it. Scheduling is `scheduler`'s, tensors are `model_runner`'s. Not thread-safe, but
for `new_sequence`; `client` runs it in a thread of its own.
"""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Protocol

from engine.limits import RequestLimits
from engine.model_runner import ModelRunner
from engine.scheduler import Scheduler
from engine.sequence import Sequence

if TYPE_CHECKING:
    import collections.abc

    from transformers import PreTrainedModel

    from engine.batch import SampledTokens, ScheduledBatch
    from engine.config import EngineConfig
    from engine.outputs import StepOutput
    from engine.sampling_params import SamplingParams


class PendingStep(Protocol):
    """A launched step."""

    batch: ScheduledBatch

    def result(self) -> SampledTokens:
        """Wait for the step and read what it sampled."""


class Runner(Protocol):
    """Runs batches; a few lines of fake are enough to test everything above it."""

    vocab_size: int

    def launch(self, batch: ScheduledBatch) -> PendingStep:
        """Start a step, without waiting for it."""


class Engine:
    """Advances many sequences over one model together.

    A sequence's greedy tokens don't depend on its mates, and neither do its random ones: exactly,
    as far as the parts compute a row alike in any batch. On CPU norms, rotation, activations,
    sampling and a prompt's attention do. A decoding sequence's attention does with
    `is_batch_invariant`. Linear layers do if their weights say so; an ordinary matrix product may
    differ in the last bits with the number of rows, which shows only where the two leading logits
    nearly tie.
    """

    def __init__(self, model: PreTrainedModel, config: EngineConfig) -> None:
        """Take a loaded model over: its layers are replaced or redirected, so use it no other way.

        Raises `UnsupportedModelError`.
        """
        self._begin(ModelRunner(model, config), config)

    @classmethod
    def with_runner(cls, runner: Runner, config: EngineConfig) -> Engine:
        """Make an engine around a runner that is ready."""
        engine = cls.__new__(cls)
        engine._begin(runner, config)
        return engine

    def _begin(self, runner: Runner, config: EngineConfig) -> None:
        self.limits = RequestLimits(runner.vocab_size, config.max_model_len)
        self.scheduler = Scheduler(config)
        self._runner = runner
        self._pending: PendingStep | None = None
        self._sequence_ids = itertools.count()

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        return self.scheduler.has_work or self._pending is not None

    def new_sequence(
        self,
        prompt_token_ids: collections.abc.Sequence[int],
        params: SamplingParams,
        *,
        caller: str | None = None,
    ) -> Sequence:
        """Make a sequence that `add` will take; raises an `InvalidRequestError`.

        May be called from any thread.
        """
        self.limits.check(prompt_token_ids, params)
        return Sequence(
            sequence_id=next(self._sequence_ids),
            prompt_token_ids=tuple(prompt_token_ids),
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            max_output_tokens=self.limits.max_output_tokens(len(prompt_token_ids), params),
            caller=caller,
        )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence made by `new_sequence`."""
        self.scheduler.add(sequence)

    def abort(self, sequence_id: int) -> None:
        """End a sequence without further output; unknown or ended ones are left alone."""
        self.scheduler.abort(sequence_id)

    def step(self) -> list[StepOutput]:
        """Launch the next batch, then collect the one before it."""
        launched = self._launch_next()
        finished, self._pending = self._pending, launched
        if finished is None:  # first step after a pause, or nothing to run
            return []
        return self.scheduler.update(finished.batch, finished.result())

    def _launch_next(self) -> PendingStep | None:
        batch = self.scheduler.schedule()
        return None if batch is None else self._runner.launch(batch)
