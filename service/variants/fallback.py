"""What is tried next where a variant cannot be loaded as it is: another kernel, a shorter context,
another branch.

Pure policy. Each step is a new engine in a new process, so what a failed one held is free, and a
process that the system killed for its memory counts like one that could say so itself. What was
given up is kept as `degraded`, for people to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineDeadError, EngineKilledError, EngineStartError
from service.worker_protocol.load_attempt import Attempt, Failure, StartFailure, Trial

if TYPE_CHECKING:
    from service.settings import WorkerSettings

SHORTEST_CONTEXT = 1024  # tokens; below it a variant is of no use to anybody
_WHY = {Failure.MEMORY: "out of memory", Failure.SELF_TEST: "failed its self-test"}
# One that was killed once may have met somebody who tidied up; one that was killed twice is too
# large.
KILLS_FOR_WANT_OF_MEMORY = 2


@dataclass(frozen=True, slots=True)
class Step:
    """The next attempt, and what it gives up."""

    attempt: Attempt
    reason: str


class Ladder:
    """The attempts at one variant, from the first to the one that serves."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.attempt = Attempt()
        self._settings = settings
        self._trial: Trial | None = None  # the last one told
        self._is_ours = False  # whether the settings leave the branch to us
        self._left: list[str] = []  # branches, and why
        self._given_up: list[str] = []  # with the branch that is tried now
        self._num_kills = 0

    @property
    def degraded(self) -> str | None:
        """What was given up so that it runs, in words; None where nothing was."""
        return "; ".join((*self._left, *self._given_up)) or None

    @property
    def trial(self) -> Trial | None:
        """What the last engine told that it tries."""
        return self._trial

    def note(self, trial: Trial) -> None:
        """Take in what an engine tries; later engines of this variant stay with the choice."""
        if self.attempt.variant is None:
            self._is_ours = trial.reason is not None
            self.attempt = msgspec.structs.replace(self.attempt, variant=trial.variant)
        self._trial = trial

    def begin(self) -> None:
        """Begin anew, as after somebody unloaded the variant: what was short may be free again.

        A branch that was chosen is kept, if it was not a second choice.
        """
        kept = None if self._left else self.attempt.variant
        self.attempt = Attempt(variant=kept)
        self._trial = None
        self._left, self._given_up, self._num_kills = [], [], 0

    def note_success(self) -> None:
        """Forget what did not end in failure after all."""
        self._num_kills = 0

    def step_down(self, error: EngineDeadError) -> str | None:
        """Take the next rung after an engine that never served; return what it gives up, if any.

        None where nothing else is left to try, or nothing else would help: neither does it after an
        engine that did not get as far as telling what it tries.
        """
        failure = self._failure(error)
        if failure is None or self._settings.strict or self._trial is None:
            return None
        step = self._next(failure, self._trial)
        if step is None:
            return None
        self._num_kills = 0
        if step.attempt.variant is None:
            self._left.append(step.reason)
            self._given_up = []
        else:
            self._given_up.append(step.reason)
        self.attempt = step.attempt
        self._trial = None  # the next engine tells its own
        return step.reason

    def _failure(self, error: EngineDeadError) -> StartFailure | None:
        if isinstance(error, EngineStartError):
            return StartFailure.decode(error.about)
        if isinstance(error, EngineKilledError):
            self._num_kills += 1
            if self._num_kills >= KILLS_FOR_WANT_OF_MEMORY:
                return StartFailure(Failure.MEMORY)
        return None

    def _next(self, failure: StartFailure, trial: Trial) -> Step | None:
        steps = [self._next_backend(failure)]
        if failure.kind is Failure.MEMORY:
            steps.append(self._shorter_context(trial))
        steps.append(self._next_branch(failure, trial))
        return next((step for step in steps if step is not None), None)

    def _next_backend(self, failure: StartFailure) -> Step | None:
        left_out = [name for name in failure.backends if name not in self.attempt.excluded_backends]
        if not left_out or self._settings.backend != "auto":
            return None
        excluded = (*self.attempt.excluded_backends, *left_out)
        return Step(
            msgspec.structs.replace(self.attempt, excluded_backends=excluded),
            f"without kernel {'+'.join(left_out)}: {_WHY[failure.kind]}",
        )

    def _shorter_context(self, trial: Trial) -> Step | None:
        asked = self._settings.max_model_len, self._settings.kv_cache_size
        if trial.max_model_len is None or asked != ("auto", "auto"):
            return None  # a cache of a size that was asked for is no smaller for shorter contexts
        shorter = trial.max_model_len // 2
        if shorter < SHORTEST_CONTEXT:
            return None
        return Step(
            msgspec.structs.replace(self.attempt, max_model_len=shorter),
            f"context {shorter} instead of {trial.max_model_len} tokens: {_WHY[Failure.MEMORY]}",
        )

    def _next_branch(self, failure: StartFailure, trial: Trial) -> Step | None:
        if not self._is_ours:
            return None
        excluded = (*self.attempt.excluded_variants, trial.variant)
        return Step(
            Attempt(excluded_variants=excluded),
            f"another branch than {trial.variant}: {_WHY[failure.kind]}",
        )
