"""What is tried next where a variant cannot be loaded as it is: other kernels, steps without
graphs, a shorter context, another branch.

Pure policy. Each step is a new engine in a new process, so what a failed one held is free, and a
process that the system killed for its memory counts like one that could say so itself. What was
given up is kept as `degraded`, for people to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineDeadError, EngineKilledError, EngineStartError, LiveCheckError
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, LoadRequest, StartFailure

if TYPE_CHECKING:
    from service.settings import WorkerSettings

SHORTEST_CONTEXT = 1024  # tokens; below it a variant is of no use to anybody
_WHY = {
    FailureKind.MEMORY: "out of memory",
    FailureKind.SELF_TEST: "failed its self-test",
    FailureKind.LIVE_CHECK: "differed from the files while it was serving",
    FailureKind.STEP_TEST: "failed the test of its steps",
    FailureKind.CANNOT_RUN: "cannot run here",
    FailureKind.CRASH: "ended the engine's process when first tried",
}
# One that was killed once may have met somebody who tidied up; one that was killed twice is too
# large.
KILLS_THAT_MEAN_OUT_OF_MEMORY = 2


@dataclass(frozen=True, slots=True)
class Fallback:
    """The next attempt, and what it gives up."""

    load_request: LoadRequest
    reason: str


class FallbackPolicy:
    """The attempts at one variant, from the first to the one that serves."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.load_request = LoadRequest()
        self._settings = settings
        self._attempt: LoadAttempt | None = None  # the last one reported
        self._is_ours = False  # whether the settings leave the branch to us
        self._left: list[str] = []  # branches, and why
        self._given_up: list[str] = []  # with the branch that is tried now
        self._num_kills = 0

    @property
    def degraded(self) -> str | None:
        """What was given up so that it runs, in words; None where nothing was."""
        return "; ".join((*self._left, *self._given_up)) or None

    @property
    def attempt(self) -> LoadAttempt | None:
        """What the last engine reported that it tries."""
        return self._attempt

    def note(self, attempt: LoadAttempt) -> None:
        """Take in what an engine tries; later engines of this variant stay with the choice."""
        if self.load_request.variant is None:
            self._is_ours = attempt.reason is not None
            self.load_request = msgspec.structs.replace(self.load_request, variant=attempt.variant)
        self._attempt = attempt

    def reset(self) -> None:
        """Begin anew, as after somebody unloaded the variant: what was short may be free again.

        A branch that was chosen is kept, if it was not a second choice; so is doubt of its files.
        """
        kept = None if self._left else self.load_request.variant
        self.load_request = LoadRequest(variant=kept, doubts_files=self.load_request.doubts_files)
        self._attempt = None
        self._left, self._given_up, self._num_kills = [], [], 0

    def note_success(self) -> None:
        """Forget what did not end in failure after all."""
        self._num_kills = 0
        self.load_request = msgspec.structs.replace(self.load_request, doubts_files=False)
        if self._attempt is not None:
            self._attempt = msgspec.structs.replace(self._attempt, sudden_end=None)

    def next_attempt(self, error: EngineDeadError) -> str | None:
        """Choose the next attempt after an engine that never served; return what it gives up.

        Also after one whose live check failed. None where nothing else is left to try, or nothing
        else would help: neither does it after an engine that did not get as far as telling what it
        tries.
        """
        failure = self._failure(error)
        if failure is not None and failure.kind is FailureKind.LIVE_CHECK:
            # Memory and files differ; which of them is wrong only the files' hashes can tell.
            self.load_request = msgspec.structs.replace(self.load_request, doubts_files=True)
        if failure is None or self._settings.strict or self._attempt is None:
            return None
        fallback = self._next(failure, self._attempt)
        if fallback is None:
            return None
        self._num_kills = 0
        if fallback.load_request.variant is None:
            self._left.append(fallback.reason)
            self._given_up = []
        else:
            self._given_up.append(fallback.reason)
        self.load_request = fallback.load_request
        self._attempt = None  # the next engine tells its own
        return fallback.reason

    def _failure(self, error: EngineDeadError) -> StartFailure | None:
        if isinstance(error, EngineStartError | LiveCheckError):
            return StartFailure.of(error)
        if isinstance(error, EngineKilledError):
            self._num_kills += 1
            if self._num_kills >= KILLS_THAT_MEAN_OUT_OF_MEMORY:
                return StartFailure(FailureKind.MEMORY)
            return None
        # It ended in another way, and said nothing: what was tried just then is to blame.
        return None if self._attempt is None else self._attempt.sudden_end

    def _next(self, failure: StartFailure, attempt: LoadAttempt) -> Fallback | None:
        fallbacks = [
            self._without_native(failure),
            self._without_graphs(failure),
            self._without_flash(failure),
            self._next_step_kernels(failure),
            self._next_backend(failure),
        ]
        if failure.kind is FailureKind.LIVE_CHECK:
            return self._next_backend(failure)  # loaded anew it may be right; the tests will tell
        if failure.kind is FailureKind.MEMORY:
            fallbacks.append(self._shorter_context(attempt))
        if failure.kind in (FailureKind.MEMORY, FailureKind.SELF_TEST):
            # The others would meet again in any branch: the device and the model's shape are alike.
            fallbacks.append(self._next_branch(failure, attempt))
        return next((fallback for fallback in fallbacks if fallback is not None), None)

    def _without_native(self, failure: StartFailure) -> Fallback | None:
        is_given_up = self.load_request.excludes_native or self._settings.cpu_kernels != "auto"
        if not failure.native or is_given_up:
            return None
        return Fallback(
            msgspec.structs.replace(self.load_request, excludes_native=True),
            f"without the C++ kernels: {self._why(failure)}",
        )

    def _without_graphs(self, failure: StartFailure) -> Fallback | None:
        is_given_up = self.load_request.excludes_graphs or self._settings.enforce_eager != "auto"
        if not failure.graphs or is_given_up:
            return None
        return Fallback(
            msgspec.structs.replace(self.load_request, excludes_graphs=True),
            f"without graphs: {self._why(failure)}",
        )

    def _without_flash(self, failure: StartFailure) -> Fallback | None:
        if not failure.flash or self.load_request.excludes_flash:
            return None
        return Fallback(
            msgspec.structs.replace(self.load_request, excludes_flash=True),
            f"without flash attention: {self._why(failure)}",
        )

    def _next_step_kernels(self, failure: StartFailure) -> Fallback | None:
        known = self.load_request.excluded_step_kernels
        left_out = [name for name in failure.step_kernels if name not in known]
        if not left_out or self._settings.step_kernels != "auto":
            return None
        return Fallback(
            msgspec.structs.replace(self.load_request, excluded_step_kernels=(*known, *left_out)),
            f"without step kernels {'+'.join(left_out)}: {self._why(failure)}",
        )

    def _next_backend(self, failure: StartFailure) -> Fallback | None:
        left_out = [
            name for name in failure.backends if name not in self.load_request.excluded_backends
        ]
        if not left_out or self._settings.backend != "auto":
            return None
        excluded = (*self.load_request.excluded_backends, *left_out)
        return Fallback(
            msgspec.structs.replace(self.load_request, excluded_backends=excluded),
            f"without kernel {'+'.join(left_out)}: {self._why(failure)}",
        )

    def _why(self, failure: StartFailure) -> str:
        if failure.kind is FailureKind.LIVE_CHECK and self._settings.verify == "never":
            return f"{_WHY[failure.kind]}, which verify=never leaves unverified"
        why = _WHY[failure.kind]
        return why if failure.detail is None else f"{why} ({failure.detail})"

    def _shorter_context(self, attempt: LoadAttempt) -> Fallback | None:
        asked = self._settings.max_model_len, self._settings.kv_cache_size
        if attempt.max_model_len is None or asked != ("auto", "auto"):
            return None  # a cache of a size that was asked for is no smaller for shorter contexts
        shorter = attempt.max_model_len // 2
        if shorter < SHORTEST_CONTEXT:
            return None
        return Fallback(
            msgspec.structs.replace(self.load_request, max_model_len=shorter),
            f"context {shorter} instead of {attempt.max_model_len} tokens:"
            f" {_WHY[FailureKind.MEMORY]}",
        )

    def _next_branch(self, failure: StartFailure, attempt: LoadAttempt) -> Fallback | None:
        if not self._is_ours:
            return None
        excluded = (*self.load_request.excluded_variants, attempt.variant)
        return Fallback(
            LoadRequest(excluded_variants=excluded),
            f"another branch than {attempt.variant}: {_WHY[failure.kind]}",
        )
