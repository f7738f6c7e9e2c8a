"""What requests in text-generation-inference's words may say, and what it means there.

Silence means what it means to that server, not what the variant recommends: greedy, unless
do_sample or a setting of sampling says otherwise, and then temperature 1 and all tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.sampling_params import MAX_LOGPROBS, MAX_PENALTY
from service.api.requests import (
    EMPTY_IS_SILENCE,
    MAX_COUNT,
    NO_EFFECT,
    Name,
    NumChoices,
    RequestModel,
    Seed,
    Stop,
    Unsupported,
)
from service.api.text_forms import read_schema, regex_form, schema_form
from service.serving.sampling import SamplingOptions

if TYPE_CHECKING:
    from service.grammars.wanted import TextForm

_GRAMMAR = "parameters.grammar"


class Grammar(RequestModel):
    """The form of a text."""

    type: Literal["json", "json_schema", "regex"] = Field(description="What `value` is.")
    value: Any = Field(
        description="A JSON schema, as an object or a text (of `json_schema` also as OpenAI's"
        " clients name one, in `schema`), or a regular expression."
    )

    @model_validator(mode="after")
    def _is_readable(self) -> Grammar:
        _ = self.text_form
        return self

    @property
    def text_form(self) -> TextForm:
        """Return the form. Raises ValueError where the value is none of that type."""
        if self.type == "regex":
            if not isinstance(self.value, str) or not self.value:
                raise ValueError("value is no text; give a regular expression")
            return regex_form(_GRAMMAR, self.value)
        schema = read_schema(self.value)
        if schema is None:
            raise ValueError("value is empty; give a JSON schema")
        if self.type == "json_schema" and isinstance(schema, dict) and "schema" in schema:
            schema = read_schema(schema["schema"])
        return schema_form(_GRAMMAR, True if schema is None else schema)


class GenerationParameters(RequestModel):
    """How to go on from a text."""

    other_names: ClassVar = {"stop": ("stop_sequences",)}

    # How much
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Most tokens to generate. 100, or what is left of the context, by default.",
    )
    truncate: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Keep only the last so many tokens (BOS stays)."
    )
    stop: Stop = Field(None, description="Texts that end the answer; they stay at its end.")
    stop_sequences: Stop = Field(None, description="Another name of stop.")
    best_of: NumChoices = Field(
        None,
        description="Make so many answers, return that of highest mean logprob; only with sampling,"
        " not as a stream.",
    )

    # How tokens are picked
    do_sample: bool | None = Field(
        None, description="Draw tokens; else the likeliest is picked, unless a setting below says."
    )
    temperature: float | None = Field(
        None, ge=0, le=100, description="Other than 1 it means sampling; 0 picks the likeliest."
    )
    top_k: int | None = Field(
        None, ge=-1, le=MAX_COUNT, description="How many tokens to draw from; means sampling."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Share of probability to draw from; below 1 means sampling."
    )
    typical_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Keep the mass whose surprise is nearest the entropy; below 1 means sampling.",
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Divides the logits (multiplies negative ones) of tokens in prompt or answer.",
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-MAX_PENALTY,
        le=MAX_PENALTY,
        description="Taken off a token's logit for every time that it was generated.",
    )
    seed: Seed = Field(
        None,
        description="Makes sampling repeatable; answer i of best_of takes seed + i; -1 is silence.",
    )

    # What form it has
    grammar: Annotated[Grammar | None, EMPTY_IS_SILENCE] = Field(
        None, description="The form that the text must have."
    )

    # What is told
    details: bool | None = Field(None, description="Tell tokens, why the text ends, the seed.")
    decoder_input_details: bool | None = Field(
        None, description="Tell the prompt's tokens too, in details.prefill; not as a stream."
    )
    top_n_tokens: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Tell so many likeliest tokens at each place."
    )
    return_full_text: bool | None = Field(
        None, description="generated_text begins with the prompt. false by default."
    )

    # Refused where they say anything
    watermark: Unsupported = Field(None, description="Not supported.")
    adapter_id: Unsupported = Field(None, description="Not supported.")

    @property
    def reports_details(self) -> bool:
        """Whether a whole answer has details."""
        return bool(self.details or self.decoder_input_details)

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn; settings that are neutral say nothing."""
        if self.temperature == 0:
            return False
        return (
            bool(self.do_sample)
            or self.temperature not in (None, 1)
            or (self.top_k or 0) > 0
            or self.top_p not in (None, 1)
            or self.typical_p not in (None, 1)
        )

    def sampling_options(
        self, *, seed: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingOptions:
        """Return what these parameters say of picking tokens; silence is not left to the variant.

        seed: where tokens are drawn.
        """
        return SamplingOptions(
            temperature=(1.0 if self.temperature is None else self.temperature)
            if self.is_sampled
            else 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=seed,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


def _none_if_true(value: object) -> object:
    return None if value is True else value


class TgiRequest(RequestModel):
    """The fields that the endpoints share."""

    inputs: str = Field(
        description="The text to go on from. Special pieces in it are parsed; it gets one BOS."
    )
    parameters: Annotated[GenerationParameters | None, EMPTY_IS_SILENCE] = Field(
        None, description="How to go on."
    )
    model: Name = Field(
        None, description="A served name; needed only where several variants are served."
    )

    @property
    def settings(self) -> GenerationParameters:
        """The parameters, silent ones where there are none."""
        return self.parameters or GenerationParameters.model_construct()


class GenerateRequest(TgiRequest):
    """The body of POST /generate."""

    stream: Any = Field(
        None, json_schema_extra=NO_EFFECT, description="No effect: it is never one here."
    )


class GenerateStreamRequest(TgiRequest):
    """The body of POST /generate_stream."""

    stream: Annotated[Any, BeforeValidator(_none_if_true)] = Field(
        None, json_schema_extra=NO_EFFECT, description="No effect: it is always one here."
    )


class CompatibleRequest(TgiRequest):
    """The body of POST /."""

    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
