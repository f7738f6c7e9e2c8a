"""What a caller asks of one generation: how tokens are picked and when it ends.

Plain numbers, checked once here; text (stop strings, templates) stays in the service.
"""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003  decoded by its annotation
from dataclasses import dataclass, field

from engine.errors import InvalidSamplingParamsError

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20  # leading tokens whose logprobs may be asked for
MAX_PENALTY = 2.0  # of presence and frequency, either way, as OpenAI has it
MAX_BIAS = 100.0  # of a logit, either way, as OpenAI has it


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Settings of one sequence; immutable, so that it may be shared between sequences."""

    max_tokens: int  # upper bound of generated tokens, at least 1
    min_tokens: int = 0  # no end or stop token is picked before so many

    # Which tokens are left to pick from, in this order
    temperature: float = 1.0  # 0 picks the most likely token
    top_k: int | None = None  # keep the k most likely tokens; None keeps all
    top_p: float = 1.0  # in (0, 1]; keep the likeliest tokens of so much mass; 1 keeps all
    min_p: float = 0.0  # in [0, 1]; keep tokens of at least this share of the likeliest one's
    typical_p: float = 1.0  # in (0, 1]; keep the mass whose surprise is nearest the entropy

    # How logits are changed before that
    presence_penalty: float = 0.0  # taken off each token generated already
    frequency_penalty: float = 0.0  # taken off for every time that a token was generated
    repetition_penalty: float = 1.0  # divides (negative: multiplies) logits of prompt and answer
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added, by token id
    allowed_token_ids: frozenset[int] | None = None  # nothing else is picked; None allows all
    banned_token_ids: frozenset[int] = frozenset()  # never picked
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that never come about

    seed: int | None = None  # in [0, 2**63); None takes a fresh one per sequence

    # What ends the sequence, emitted with finish_reason STOP
    eos_token_ids: frozenset[int] = frozenset()  # the model's own
    stop_token_ids: frozenset[int] = frozenset()  # the caller's
    ignore_eos: bool = False  # eos_token_ids end nothing

    # What is told beside the tokens: of the model's own distribution, before any setting above
    logprobs: int | None = None  # how many leading tokens beside the picked one; None tells nothing
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first

    def __post_init__(self) -> None:
        """Refuse values that no sampler can honour."""
        if self.max_tokens < 1:
            raise InvalidSamplingParamsError(f"max_tokens is {self.max_tokens}; give at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidSamplingParamsError(
                f"min_tokens is {self.min_tokens}; give 0 to max_tokens, {self.max_tokens}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InvalidSamplingParamsError(f"top_k is {self.top_k}; give at least 1, or none")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidSamplingParamsError(f"seed is {self.seed}; give 0 to {MAX_SEED}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidSamplingParamsError(
                f"temperature is {self.temperature}; give a finite number of at least 0"
            )
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InvalidSamplingParamsError(
                f"repetition_penalty is {self.repetition_penalty}; give a finite number above 0"
            )
        self._check_shares()
        self._check_penalties()
        self._check_tokens()

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the most likely one of those allowed."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Every token id that ends the sequence."""
        return self.stop_token_ids if self.ignore_eos else self.eos_token_ids | self.stop_token_ids

    @property
    def token_ids(self) -> frozenset[int]:
        """Every token id that these settings name; each indexes a tensor."""
        return (
            self.eos_token_ids
            | self.stop_token_ids
            | self.banned_token_ids
            | (self.allowed_token_ids or frozenset())
            | frozenset(self.logit_bias)
            | frozenset(token_id for word in self.bad_words for token_id in word)
        )

    def _check_shares(self) -> None:
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidSamplingParamsError(
                    f"{name} is {getattr(self, name)}; give more than 0, at most 1"
                )
        if not 0 <= self.min_p <= 1:
            raise InvalidSamplingParamsError(f"min_p is {self.min_p}; give 0 to 1")

    def _check_penalties(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MAX_PENALTY <= getattr(self, name) <= MAX_PENALTY:
                raise InvalidSamplingParamsError(
                    f"{name} is {getattr(self, name)}; give {-MAX_PENALTY} to {MAX_PENALTY}"
                )
        for token_id, bias in self.logit_bias.items():
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise InvalidSamplingParamsError(
                    f"logit_bias of token {token_id} is {bias}; give {-MAX_BIAS} to {MAX_BIAS}"
                )
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            if asked is not None and not 0 <= asked <= MAX_LOGPROBS:
                raise InvalidSamplingParamsError(f"{name} is {asked}; give 0 to {MAX_LOGPROBS}")

    def _check_tokens(self) -> None:
        if not all(self.bad_words):
            raise InvalidSamplingParamsError("bad_words holds an empty word; leave it out")
        if self.allowed_token_ids is not None and not (
            self.allowed_token_ids - self.banned_token_ids
        ):
            raise InvalidSamplingParamsError(
                "allowed_token_ids leaves no token to pick; allow at least one that is not banned"
            )
