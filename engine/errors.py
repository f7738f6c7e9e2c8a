"""Everything the engine raises on purpose.

EngineError
├── InvalidRequestError          the caller can mend it
│   ├── InvalidSamplingParamsError
│   ├── InvalidTokenError        a token id outside the vocabulary
│   ├── InvalidConstraintError   a grammar that cannot be followed
│   └── PromptTooLongError       the prompt leaves no room for an answer
├── QueueFullError               too much waits already; says when to come again
├── DeadlineExceededError        the sequence's time was over before it had ended
├── UnsupportedArchitectureError        the model needs something that the engine would get wrong
├── NotEnoughBlocksError         the KV cache cannot hold even one sequence of the allowed length
├── NoCandidatesError       settings and constraint together left no token to one sequence
├── NonFiniteLogitsError         the model gave one sequence NaN or Inf; its mates go on
├── OutOfMemoryError             a step did not fit the device's memory, nor did its second try
├── BlockAccountingError         blocks leaked or are owned twice: a bug of ours
└── EngineDeadError              the engine stopped; open and new requests fail
    ├── EngineStartError         it ended before it took work, for a reason that trying won't mend
    ├── LiveCheckError           its live check found a layer that computes wrongly
    └── EngineKilledError        its process was killed, as the system does where memory is short
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.encoded import EncodedStartFailure


class EngineError(Exception):
    """Root of the engine's errors."""


class InvalidRequestError(EngineError):
    """The request cannot be run as asked; the message says what to change."""


class InvalidSamplingParamsError(InvalidRequestError):
    """A sampling setting is outside its range."""


class InvalidTokenError(InvalidRequestError):
    """A token id is outside the model's vocabulary."""


class InvalidConstraintError(InvalidRequestError):
    """A grammar cannot be read or followed."""


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for an answer within `max_model_len`."""


class QueueFullError(EngineError):
    """Too much waits already."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s  # when about half of the queue will have been served


class DeadlineExceededError(EngineError):
    """The sequence's time was over before it had ended."""


class UnsupportedArchitectureError(EngineError):
    """The model needs something that the engine would get wrong."""


class NotEnoughBlocksError(EngineError):
    """The KV cache is too small."""


class NoCandidatesError(EngineError):
    """A sequence's settings left it no token to pick."""


class NonFiniteLogitsError(EngineError):
    """The model's logits for one sequence held NaN or Inf."""


class OutOfMemoryError(EngineError):
    """A step did not fit the device's memory."""


class BlockAccountingError(EngineError):
    """The blocks handed out and the blocks left don't add up."""


class EngineDeadError(EngineError):
    """The engine has stopped and takes no more work."""


class EngineStartError(EngineDeadError):
    """The engine could not be started; another try would end the same way."""

    def __init__(self, message: str, *, start_failure: EncodedStartFailure | None = None) -> None:
        super().__init__(message)
        self.start_failure = start_failure  # what it lacked, where another attempt may do without


class LiveCheckError(EngineDeadError):
    """The engine ended itself: its live check found a layer that computes wrongly."""

    def __init__(self, message: str, *, start_failure: EncodedStartFailure | None = None) -> None:
        super().__init__(message)
        self.start_failure = start_failure  # what the next engine may do without


class EngineKilledError(EngineDeadError):
    """Somebody killed the engine's process: the system, where memory ran out, or an operator."""
