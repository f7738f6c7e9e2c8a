"""The body of POST /v1/completions, also of what shows it without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo
from pydantic import model_validator as check_together

from engine.sampling_params import MAX_LOGPROBS
from service.api.openai.fields import OpenAIRequest
from service.api.requests import NumChoices, Text, is_token_ids, limits_of

_PROMPT_FORMS = (
    "give a string, a list of strings, a list of token ids (integers of at least 0), "
    "or a list of such lists"
)


def _read_prompts(prompt: object, info: ValidationInfo) -> list[str | list[int]]:
    """Bring the four forms of `prompt` into one: a list of texts and lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise ValueError(_PROMPT_FORMS)
    if not prompt:
        raise ValueError("is empty; give at least one prompt")
    if is_token_ids(prompt):
        return [prompt]
    limit = limits_of(info).max_prompts
    if len(prompt) > limit:
        raise ValueError(f"has {len(prompt)} prompts; give at most {limit}")
    if all(isinstance(item, str) for item in prompt):
        return list(prompt)
    if all(is_token_ids(item) for item in prompt):
        if not all(prompt):
            raise ValueError("holds an empty list of token ids; give at least one token id in each")
        return list(prompt)
    raise ValueError(_PROMPT_FORMS)


def _none_if_false(value: object) -> object:
    return None if value is False else value


NumLogprobs = Annotated[
    Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, BeforeValidator(_none_if_false)
]
_PromptForms = str | list[str] | list[int] | list[list[int]]


class CompletionRequest(OpenAIRequest):
    """The body of POST /v1/completions."""

    other_names: ClassVar = OpenAIRequest.other_names

    prompt: Annotated[
        Sequence[str | list[int]],
        PlainValidator(_read_prompts, json_schema_input_type=_PromptForms),
    ] = Field(description="One prompt or several, as text or as token ids.")
    suffix: Text = Field(
        None,
        description="What follows the answer: the variant fills in the middle, if it can. Prompts"
        " must be texts.",
    )
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    best_of: NumChoices = Field(
        None,
        description="Make so many choices of each prompt and return the n of highest mean logprob;"
        " not with stream.",
    )
    logprobs: NumLogprobs = Field(
        None, description="Tell each token's logprob, and so many likeliest ones."
    )
    add_special_tokens: bool | None = Field(
        None, description="false: a prompt given as text gets no BOS. true by default."
    )

    @check_together(mode="after")
    def _choices_agree(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError(f"best_of is {self.best_of} and n {self.n}; give at least n")
        if self.stream and (self.best_of or 1) > (self.n or 1):
            raise ValueError("best_of cannot be streamed; leave it out, or leave out stream")
        return self

    @check_together(mode="after")
    def _gap_agrees(self) -> CompletionRequest:
        if self.suffix is None:
            return self
        if not all(isinstance(prompt, str) for prompt in self.prompt):
            raise ValueError("with suffix, give prompt as text: its ids are put together here")
        if self.add_special_tokens is False:
            raise ValueError("with suffix, leave out add_special_tokens: the gap's form needs them")
        if self.echo and self.logprobs is not None:
            raise ValueError("with suffix, echo has no logprobs: leave out one of the three")
        return self

    @property
    def num_choices(self) -> int:
        """Return how many choices to make of each prompt."""
        return self.best_of or self.n or 1
