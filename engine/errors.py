"""Everything the engine raises on purpose.

EngineError
├── InvalidRequestError          the caller can mend it
│   ├── InvalidSamplingParamsError
│   ├── InvalidTokenError        a token id outside the vocabulary
│   └── PromptTooLongError       the prompt leaves no room for an answer
├── UnsupportedModelError        the model needs something that the engine would get wrong
├── NotEnoughBlocksError         the KV cache cannot hold even one sequence of the allowed length
├── NonFiniteLogitsError         the model gave one sequence NaN or Inf; its mates go on
├── BlockAccountingError         blocks leaked or are owned twice: a bug of ours
└── EngineDeadError              the engine stopped; open and new requests fail
"""

from __future__ import annotations


class EngineError(Exception):
    """Root of the engine's errors."""


class InvalidRequestError(EngineError):
    """The request cannot be run as asked; the message says what to change."""


class InvalidSamplingParamsError(InvalidRequestError):
    """A sampling setting is outside its range."""


class InvalidTokenError(InvalidRequestError):
    """A token id is outside the model's vocabulary."""


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for an answer within `max_model_len`."""


class UnsupportedModelError(EngineError):
    """The model needs something that the engine would get wrong."""


class NotEnoughBlocksError(EngineError):
    """The KV cache is too small."""


class NonFiniteLogitsError(EngineError):
    """The model's logits for one sequence held NaN or Inf."""


class BlockAccountingError(EngineError):
    """The blocks handed out and the blocks left don't add up."""


class EngineDeadError(EngineError):
    """The engine has stopped and takes no more work."""
