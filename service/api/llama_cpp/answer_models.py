"""What POST /infill answers, as typed models; `service.api.llama_cpp.answers` fills them in.

Only what is true here: there are no slots, so no `id_slot`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from service.api.answer_model import AnswerModel


class CutCounts(AnswerModel):
    """Tokens of the prompt's parts that had no room."""

    prefix: int = Field(description="From its beginning.")
    suffix: int = Field(description="From its end.")
    files: int = Field(description="Of the first ones.")


class SamplingSettings(AnswerModel):
    """How tokens are picked, the variant's own settings filled in."""

    seed: int = Field(description="-1: a random one.")
    temperature: float
    top_k: int = Field(description="0: all.")
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: list[tuple[int, float]]
    ignore_eos: bool


class GenerationSettings(SamplingSettings):
    """How an answer was made."""

    n_predict: int = Field(description="Most tokens that were asked for and had room.")
    stop: list[str]
    n_indent: int
    n_probs: int
    stream: bool
    timings_per_token: bool


class Timings(AnswerModel):
    """How long the answer took, as measured; rates are 0 where there is nothing to divide."""

    cache_n: int = Field(description="Tokens of the prompt known from earlier ones.")
    prompt_n: int = Field(description="Those that were read.")
    prompt_ms: float = Field(description="Up to the first token; waiting in the queue included.")
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int = Field(description="Tokens of the answer, the one that ended it included.")
    predicted_ms: float = Field(description="From the first token to the last.")
    predicted_per_token_ms: float
    predicted_per_second: float


class LikelyToken(AnswerModel):
    """A token that might have come."""

    id: int
    token: str
    bytes: list[int] = Field(description="Exact, also where the text is half a character.")
    logprob: float


class ReportedToken(LikelyToken):
    """A token that came."""

    top_logprobs: list[LikelyToken] = Field(description="The likeliest at its place.")


class InfillAnswer(AnswerModel):
    """An answer of /infill, or one event of its stream, whose last has `stop: true`.

    With `response_fields` it has those alone, an object's as `timings/prompt_n`.
    """

    model_config = ConfigDict(extra="allow")

    index: int = Field(0, description="Always 0.")
    content: str = Field("", description="The text; in a stream, what is new of it.")
    tokens: list[int] = Field([], description="Its ids, where they were asked for, and streamed.")
    stop: bool = Field(True, description="Whether the answer is at its end.")
    model: str = ""
    tokens_predicted: int = Field(0, description="Generated so far.")
    tokens_evaluated: int = Field(0, description="Of the prompt.")
    generation_settings: GenerationSettings | None = None
    prompt: str = Field("", description="The prompt as the model saw it, its pieces shown.")
    has_new_line: bool = Field(False, description="Whether the answer holds a line's end.")
    truncated: bool = Field(
        False, description="Whether the prompt was cut, or the answer ended with the context."
    )
    tokens_cut: CutCounts | None = Field(None, description="What of the prompt had no room.")
    stop_type: Literal["eos", "limit", "word"] = Field(
        "eos",
        description="limit: n_predict, the context's end, n_indent or t_max_predict_ms.",
    )
    stopping_word: str = Field("", description="The string of `stop` that ended it.")
    tokens_cached: int = Field(0, description="Tokens of the prompt known from earlier ones.")
    timings: Timings | None = None
    completion_probabilities: list[ReportedToken] | None = Field(
        None, description="Each token, with n_probs."
    )
