"""What a request says about sampling, in one neutral form, and what the engine is told of it.

Each API fills in `SamplingOptions`, silent where its request is; here the variant's own settings
and the neutral values take over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from engine.sampling_params import MAX_SEED, SamplingParams
from service.text.bad_words import bad_word_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.serving.served_model import ServedModel

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The fields of `engine.sampling_params.SamplingParams` as a request has them; None: silent."""

    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None  # 0 and less: all
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


def resolve_sampling(
    options: SamplingOptions,
    model: ServedModel,
    *,
    max_tokens: int,
    end_token_ids: frozenset[int] = frozenset(),
) -> SamplingParams:
    """Take each setting from the request, else from the variant, else leave it neutral.

    end_token_ids: what ends this answer beside the variant's own end tokens, told as its own end.
    Raises InvalidSamplingParamsError, or an InvalidTextError for bad words.
    """
    defaults = model.defaults
    top_k = defaults.top_k if options.top_k is None else options.top_k
    allowed = options.allowed_token_ids
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=_first(options.min_tokens, 0),
        temperature=_first(options.temperature, defaults.temperature, 1.0),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        top_p=_first(options.top_p, defaults.top_p, 1.0),
        min_p=_first(options.min_p, 0.0),
        typical_p=_first(options.typical_p, 1.0),
        presence_penalty=_first(options.presence_penalty, 0.0),
        frequency_penalty=_first(options.frequency_penalty, 0.0),
        repetition_penalty=_first(options.repetition_penalty, 1.0),
        logit_bias=options.logit_bias,
        allowed_token_ids=None if allowed is None else frozenset(allowed),
        bad_words=bad_word_ids(model.tokenizer, options.bad_words) if options.bad_words else (),
        seed=options.seed,
        eos_token_ids=model.stop_token_ids | end_token_ids,
        stop_token_ids=frozenset(options.stop_token_ids),
        ignore_eos=options.ignore_eos,
        logprobs=options.logprobs,
        prompt_logprobs=options.prompt_logprobs,
    )


def seed_of(seed: int | None, index: int) -> int | None:
    """Give each choice its own random stream, the first one that of a request for one choice."""
    return None if seed is None else (seed + index) % (MAX_SEED + 1)


def _first(*values: Number | None) -> Number:
    """Return the first value that is given; the last one always is."""
    return next(value for value in values if value is not None)
