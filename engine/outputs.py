"""What comes out of the engine: tokens, and why a sequence ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from engine.errors import EngineError


class FinishReason(enum.Enum):
    """Why a sequence ended; the values are OpenAI's words."""

    STOP = "stop"  # an end token (or, set by the service, a stop string)
    LENGTH = "length"  # max_tokens or the model's context is used up


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely one token was, and which were the likeliest; natural logs."""

    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), likeliest first; as many as asked for


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token of one sequence; a step may give a sequence several."""

    sequence_id: int
    token_id: int
    logprobs: TokenLogprobs | None  # None unless asked for
    finish_reason: FinishReason | None  # set on the last output only


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """A stretch of a prompt, told before the sequence's first token; stretches come in order."""

    sequence_id: int
    tokens: tuple[TokenLogprobs, ...]  # the first stretch begins with the prompt's second token


@dataclass(frozen=True, slots=True)
class SequenceStarted:
    """A sequence left the queue; told once, after its first step, before its first token.

    As it was first admitted: what it waits for, or finds of its own, when it comes back after a
    preemption does not count.
    """

    sequence_id: int
    num_cached_tokens: int  # of the prompt, in the prefix cache; always fewer than it has
    queue_s: float  # from the engine's taking it in to its first slot


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """One sequence ended without an answer while the engine goes on."""

    sequence_id: int
    error: EngineError


StepOutput: TypeAlias = TokenOutput | PromptLogprobs | SequenceStarted | SequenceFailure
