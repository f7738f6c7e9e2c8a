"""The fields that OpenAI's endpoints share, with what vLLM and llama.cpp users add to them.

null, empty and neutral values mean the same as silence. What an endpoint's own fields mean stands
in its module; how they reach the engine, in `service.serving`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from engine.request import Terms
from engine.sampling_params import MAX_LOGPROBS
from service.api.requests import (
    EMPTY_IS_SILENCE,
    MAX_COUNT,
    Flag,
    Forbidden,
    FrequencyPenalty,
    Ignored,
    LogitBias,
    MaxTokens,
    MinP,
    Name,
    NumChoices,
    PresencePenalty,
    RepetitionPenalty,
    RequestModel,
    Seed,
    Share,
    Stop,
    Temperature,
    TokenIds,
    TopK,
    TopP,
    Words,
    limits_of,
    none_if,
)
from service.api.text_forms import FormedRequest
from service.serving.generation_request import AnswerForm
from service.serving.sampling import SamplingOptions
from service.serving.turns import TurnLength

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PRIORITY = 2**31 - 1
MAX_TIMEOUT_S = 86_400
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def _check_priority(value: int | None, info: ValidationInfo) -> int | None:
    if value and not limits_of(info).may_set_priority:
        raise ValueError("requests may not set it here (see the setting allow_priority)")
    return value


def _check_id(value: str | None) -> str | None:
    if value is not None and not _SANE_ID.fullmatch(value):
        raise ValueError("give 1 to 128 letters, digits and ._:/+=@-")
    return value


Priority = Annotated[
    Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None, AfterValidator(_check_priority)
]


class SampledRequest(FormedRequest):
    """How an answer's tokens are picked, where it ends, and on what terms it is made."""

    other_names: ClassVar = {
        "max_tokens": ("max_completion_tokens", "n_predict", "max_length"),
        "repetition_penalty": ("repeat_penalty", "rep_pen"),
        "typical_p": ("typical",),
        "stop": ("stop_sequence",),
        "ignore_eos": ("ban_eos_token",),
    }

    model: Name = Field(
        None,
        description="A served name. Where one variant is served, silence (and `dummy`) mean it.",
    )

    # How much, and how many
    max_tokens: MaxTokens = Field(
        None,
        description="Most tokens of each choice; -1 and -2 are silence, 0 reads the prompt alone.",
    )
    max_completion_tokens: MaxTokens = Field(None, description="Another name of max_tokens.")
    n_predict: MaxTokens = Field(None, description="Another name of max_tokens.")
    max_length: MaxTokens = Field(None, description="Another name of max_tokens.")
    min_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_COUNT,
        description="No end is picked before so many tokens, and no stop string looked for in their"
        " text.",
    )

    # How tokens are picked
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    typical_p: Share = Field(
        None, description="Keep the mass whose surprise is nearest the entropy."
    )
    typical: Share = Field(None, description="Another name of typical_p.")
    presence_penalty: PresencePenalty = None
    frequency_penalty: FrequencyPenalty = None
    repetition_penalty: RepetitionPenalty = Field(
        None,
        description="Divides the logits (multiplies negative ones) of tokens in prompt or answer.",
    )
    repeat_penalty: RepetitionPenalty = Field(
        None, description="Another name of repetition_penalty."
    )
    rep_pen: RepetitionPenalty = Field(None, description="Another name of repetition_penalty.")
    logit_bias: LogitBias = Field(
        None, description="Added to logits, by token id as text; -100 to 100."
    )
    allowed_token_ids: TokenIds = Field(None, description="Nothing else is picked.")
    bad_words: Words = Field(None, description="Texts that never come about.")
    seed: Seed = Field(
        None,
        description="Makes sampling repeatable; choice i of a prompt takes seed + i; -1: silence.",
    )

    # Where an answer ends
    stop: Stop = Field(None, description="Texts that end an answer; they are not part of it.")
    stop_sequence: Stop = Field(None, description="Another name of stop.")
    stop_token_ids: TokenIds = Field(None, description="Token ids that end an answer.")
    include_stop_str_in_output: bool | None = Field(
        None, description="What ended the answer, string or token, stays at the end of its text."
    )
    ignore_eos: Flag = Field(
        None, description="Go on past the variant's own end, up to max_tokens."
    )
    ban_eos_token: Flag = Field(None, description="Another name of ignore_eos.")

    # What is told
    skip_special_tokens: bool | None = Field(
        None, description="false: special pieces show in the text. true by default."
    )
    stream: bool | None = Field(
        None, description="Send the answer as it comes, as server-sent events."
    )

    # On what terms
    user: Name = Field(None, description="On whose behalf it is; users share the engine fairly.")
    priority: Priority = Field(
        None,
        description="Lower runs first. Only where the setting allow_priority lets requests say.",
    )
    cache_salt: Name = Field(
        None, description="Prefixes are shared only with requests of the same salt."
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=MAX_TIMEOUT_S,
        description="Seconds after which a request that has not ended fails with 408.",
    )
    request_id: Annotated[Name, AfterValidator(_check_id)] = Field(
        None, description="Becomes part of the answer's id, and its x-request-id."
    )

    # Accepted, and named as ignored, but for OpenAI's own defaults
    store: Ignored
    service_tier: Annotated[Ignored, none_if("auto", "default")]
    prompt_cache_key: Ignored
    prompt_cache_retention: Ignored
    safety_identifier: Ignored

    # Refused
    chat_template: Forbidden = Field(None, description="Never taken from a request.")
    prompt_embeds: Forbidden = Field(None, description="Never taken from a request.")

    @property
    def is_stream(self) -> bool:
        """Whether the answer is sent as it comes."""
        return bool(self.stream)

    def sampling_options(self, logprobs: int | None) -> SamplingOptions:
        """Return what these fields say of picking tokens."""
        return SamplingOptions(
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.value_of("typical_p"),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.value_of("repetition_penalty"),
            logit_bias=self.logit_bias or {},
            allowed_token_ids=self.allowed_token_ids,
            bad_words=self.bad_words or (),
            seed=self.seed,
            stop_token_ids=self.stop_token_ids or (),
            ignore_eos=bool(self.value_of("ignore_eos")),
            logprobs=logprobs,
        )

    def answer_form(self, *, echoes: bool = False, reports_tokens: bool = False) -> AnswerForm:
        """Return what these fields say of the answer's text."""
        stop: Sequence[str] | None = self.value_of("stop")
        return AnswerForm(
            stop_strings=stop or (),
            keeps_stop=bool(self.include_stop_str_in_output),
            skips_special_tokens=self.skip_special_tokens is not False,
            echoes=echoes,
            reports_tokens=reports_tokens,
        )

    @property
    def terms(self) -> Terms:
        """Return on whose behalf the request is, and how it runs."""
        return Terms(
            caller=self.user or "",
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
            timeout_s=self.timeout,
        )

    @property
    def turn_length(self) -> TurnLength:
        """Return how many tokens of a turn are wanted."""
        return TurnLength(asked=self.value_of("max_tokens"), param=self.given_name_of("max_tokens"))


class StreamOptions(RequestModel):
    """What a stream carries beside the text."""

    include_usage: bool | None = Field(None, description="End with a chunk that counts the tokens.")
    continuous_usage_stats: bool | None = Field(
        None, description="Count the tokens so far in every chunk."
    )


class OpenAIRequest(SampledRequest):
    """The fields that the endpoints share which answer with choices."""

    other_names: ClassVar = SampledRequest.other_names

    n: NumChoices = Field(None, description="How many choices to return of each prompt.")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MAX_COUNT,
        description="Keep only the last so many tokens of a prompt (BOS stays); -1: as many as"
        " leave room for the answer.",
    )

    # What is told
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="For each token of the prompt its logprob, and so many likeliest ones; not with"
        " stream.",
    )
    return_token_ids: bool | None = Field(
        None, description="Tell the ids of the prompt (prompt_token_ids) and of each answer."
    )
    stream_options: Annotated[StreamOptions | None, EMPTY_IS_SILENCE] = Field(
        None, description="Only with stream."
    )

    # Accepted, and named as ignored, but for OpenAI's own defaults
    metadata: Ignored
    verbosity: Annotated[Ignored, none_if("medium")]
    prediction: Ignored

    @model_validator(mode="after")
    def _fields_agree(self) -> OpenAIRequest:
        if not self.stream and (self.include_usage or self.counts_always):
            raise ValueError("stream_options has an effect only with stream set to true")
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError(
                "prompt_logprobs are not streamed; leave them out, or leave out stream"
            )
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def counts_always(self) -> bool:
        """Whether every chunk counts the tokens so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling_options(self, logprobs: int | None) -> SamplingOptions:
        """Return what these fields say of picking tokens."""
        options = super().sampling_options(logprobs)
        return replace(options, prompt_logprobs=self.prompt_logprobs)

    def answer_form(self, *, echoes: bool = False, reports_tokens: bool = False) -> AnswerForm:
        """Return what these fields say of the answer's text."""
        form = super().answer_form(echoes=echoes, reports_tokens=reports_tokens)
        return replace(form, reports_token_ids=bool(self.return_token_ids))


class TurnRequest(OpenAIRequest):
    """The fields that the endpoints share which answer with a turn of a dialogue."""

    other_names: ClassVar = OpenAIRequest.other_names

    logprobs: bool | None = Field(None, description="Tell each token's logprob.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="So many likeliest ones too; with logprobs."
    )

    @model_validator(mode="after")
    def _logprobs_agree(self) -> TurnRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs has an effect only with logprobs set to true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Return how many likeliest tokens are told; None where no logprob is."""
        return (self.top_logprobs or 0) if self.logprobs else None
