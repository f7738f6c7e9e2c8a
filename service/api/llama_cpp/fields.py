"""The body of POST /infill, in llama.cpp's words.

null, empty and neutral values mean the same as silence. What has no counterpart here is named as
ignored where the answer stays what it was asked to be, and refused where it would be another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    PlainValidator,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.sampling_params import MAX_BIAS, MAX_LOGPROBS
from service.api.requests import (
    EMPTY_IS_SILENCE,
    MAX_COUNT,
    MAX_NAME_LENGTH,
    FrequencyPenalty,
    Ignored,
    MaxTokens,
    MinP,
    Name,
    PresencePenalty,
    RequestModel,
    Seed,
    Stop,
    Text,
    TopK,
    TopP,
    Unsupported,
    is_empty,
    is_neutral,
    limits_of,
    none_if,
)
from service.api.text_forms import FormSchema, grammar_form, schema_form

if TYPE_CHECKING:
    from service.grammars.wanted import TextForm

MAX_FILES = 1024
MAX_INDENT = 10_000
MAX_RESPONSE_FIELDS = 64
MAX_MS = 86_400_000
MAX_TEMPERATURE = 100  # llama.cpp has no bound; far below it all tokens are equally likely
_RANDOM_SEED = 2**32 - 1  # how llama.cpp shows -1
_BIAS_FORMS = (
    "give a list of pairs such as [15043, 1.0], or an object; of token ids, or of texts whose every"
    f" token is meant; biases are {-MAX_BIAS:g} to {MAX_BIAS:g}, or false"
)

Biases: TypeAlias = list[tuple[int | str, float]]  # of token ids, and of texts


def _refuse_several(value: object) -> None:
    if not is_neutral(value):
        raise PydanticCustomError(
            "unsupported_field",
            "there is one answer to a request here; ask for 1, and send it again for each more",
        )


# Without effect here; some numbers say no more than silence.
_IgnoredNumber = Annotated[Ignored, none_if(0, -1, False)]
_IgnoredSlot = Annotated[Ignored, none_if(-1)]
# Refused, but for the number by which llama.cpp turns it off.
_UnsupportedNumber = Annotated[Unsupported, none_if(0, -1)]
_OnlyOne = Annotated[Any, AfterValidator(_refuse_several), none_if(1)]


def _read_biases(value: object, info: ValidationInfo) -> Biases | None:
    if is_empty(value):
        return None
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise ValueError(_BIAS_FORMS)
    most = limits_of(info).max_token_ids
    if len(pairs) > most:
        raise ValueError(f"names {len(pairs)} tokens; give at most {most}")
    return [_read_bias(pair, limits_of(info).max_stop_bytes) for pair in pairs]


def _read_bias(pair: object, max_bytes: int) -> tuple[int | str, float]:
    if not (isinstance(pair, list | tuple) and len(pair) == 2):
        raise ValueError(_BIAS_FORMS)
    token, bias = pair
    if isinstance(token, str) and token.isascii() and token.isdecimal() and len(token) <= 10:
        token = int(token)
    is_id = type(token) is int and 0 <= token <= MAX_COUNT
    is_text = isinstance(token, str) and 0 < len(token.encode()) <= max_bytes
    if bias is False:
        bias = -MAX_BIAS
    is_bias = isinstance(bias, int | float) and not isinstance(bias, bool) and abs(bias) <= MAX_BIAS
    if not ((is_id or is_text) and is_bias):
        raise ValueError(_BIAS_FORMS)
    return token, float(bias)


def _read_field_names(value: object) -> list[str] | None:
    if is_empty(value):
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError('give a list of strings such as "timings/prompt_n"')
    if len(value) > MAX_RESPONSE_FIELDS:
        raise ValueError(f"names {len(value)} fields; give at most {MAX_RESPONSE_FIELDS}")
    if any(len(name) > MAX_NAME_LENGTH for name in value):
        raise ValueError(f"give names of at most {MAX_NAME_LENGTH} characters")
    return value


def _at_most_files(files: object) -> object:
    if isinstance(files, list) and len(files) > MAX_FILES:
        raise ValueError(f"has {len(files)} files; give at most {MAX_FILES}")
    return files


class ExtraFile(RequestModel):
    """Another file of the project, or a part of one."""

    filename: Text = Field(None, description="Its name, where the variant's family writes names.")
    text: str = Field(description="What it holds.")
    time: Ignored


_NumProbs = Annotated[Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, none_if(0, False)]
_Milliseconds = Annotated[float | None, Field(ge=-1, le=MAX_MS)]


class InfillRequest(RequestModel):
    """The body of POST /infill."""

    other_names: ClassVar = {"n_predict": ("max_tokens",), "n_probs": ("logprobs",)}

    model: Name = Field(
        None,
        description="A served name. Where one variant is served, silence (and `dummy`) mean it.",
    )

    # The gap
    input_prefix: str = Field(description="The text before the gap; it may be empty.")
    input_suffix: str = Field(description="The text behind the gap; it may be empty.")
    input_extra: Annotated[
        list[ExtraFile] | None, FailFast(), BeforeValidator(_at_most_files), EMPTY_IS_SILENCE
    ] = Field(
        None,
        description="Other files of the project; those that matter most last, as the first are"
        " left out where the context is short.",
    )
    prompt: Text = Field(
        None, description="What was typed of the answer already; it goes on from there."
    )

    # How much
    n_predict: MaxTokens = Field(
        None,
        description="Most tokens of the answer; -1 (and silence): up to the end of the context;"
        " 0: the prompt is read into the prefix cache and nothing generated.",
    )
    max_tokens: MaxTokens = Field(None, description="Another name of n_predict.")
    n_indent: int | None = Field(
        None,
        ge=0,
        le=MAX_INDENT,
        description="Spaces and tabs before each line of the answer but its first; one with fewer,"
        " if it is not blank, is left out and ends it.",
    )
    t_max_predict_ms: _Milliseconds = Field(
        None,
        description="Milliseconds from the first token after which the answer ends, with the next"
        " line's end; 0 and -1 are no limit.",
    )
    stop: Stop = Field(None, description="Texts that end the answer; they are not part of it.")
    ignore_eos: bool | None = Field(None, description="Go on past every end, up to n_predict.")

    # How tokens are picked
    temperature: float | None = Field(
        None,
        ge=0,
        le=MAX_TEMPERATURE,
        description="0 picks the most likely token. The variant's own by default.",
    )
    top_k: TopK = None
    top_p: TopP = None
    min_p: MinP = None
    typical_p: float | None = Field(
        None, gt=0, le=1, description="Keep the mass whose surprise is nearest the entropy."
    )
    repeat_penalty: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Divides the logits (multiplies negative ones) of tokens in prompt or answer.",
    )
    presence_penalty: PresencePenalty = None
    frequency_penalty: FrequencyPenalty = None
    seed: Annotated[Seed, none_if(_RANDOM_SEED)] = Field(
        None, description="Makes sampling repeatable; -1 and 4294967295 do not."
    )
    logit_bias: Annotated[
        Biases | None,
        PlainValidator(
            _read_biases,
            json_schema_input_type=list[list[Any]] | dict[str, float | bool] | None,
        ),
    ] = Field(
        None,
        description="Added to logits: pairs of a token's id, or a text whose every token is meant,"
        " and -100 to 100; false is -100. An object of the same, too.",
    )

    # What form it has
    grammar: Text = Field(
        None, description="A grammar that the text follows: llama.cpp's GBNF, or Lark's."
    )
    json_schema: FormSchema = Field(
        None, description="A JSON schema that the text follows, in llama.cpp's words."
    )

    # What is told
    stream: bool | None = Field(
        None, description="Send the answer as it comes, as server-sent events, without a [DONE]."
    )
    response_fields: Annotated[
        list[str] | None,
        PlainValidator(_read_field_names, json_schema_input_type=list[str] | None),
    ] = Field(
        None,
        description="Answer with these fields alone (a stream: end with them); of an object's"
        " field as `timings/prompt_n`, under which name it comes. Those that do not exist are left"
        " out.",
    )
    return_tokens: bool | None = Field(
        None, description="Tell the answer's token ids; a stream always does."
    )
    n_probs: _NumProbs = Field(
        None,
        description="Tell each token's logprob before all settings, and so many likeliest ones; 0"
        " tells nothing.",
    )
    logprobs: _NumProbs = Field(None, description="Another name of n_probs.")
    timings_per_token: bool | None = Field(
        None, description="Tell the timings in each event of a stream, not just in its last."
    )
    cache_prompt: bool | None = Field(
        None, description="false: nothing of the prompt is taken from earlier ones. true by default"
    )

    # Accepted, and named as ignored
    samplers: Ignored
    t_max_prompt_ms: _IgnoredNumber
    id_slot: _IgnoredSlot
    n_keep: _IgnoredNumber
    n_discard: _IgnoredNumber
    n_cache_reuse: _IgnoredNumber
    min_keep: _IgnoredNumber
    repeat_last_n: Ignored
    dry_base: Ignored
    dry_allowed_length: Ignored
    dry_penalty_last_n: Ignored
    dry_sequence_breakers: Ignored
    xtc_threshold: Ignored
    dynatemp_exponent: Ignored
    mirostat_tau: Ignored
    mirostat_eta: Ignored
    adaptive_decay: Ignored
    return_progress: _IgnoredNumber
    sse_ping_interval: Ignored

    # Refused where they say anything
    n_cmpl: _OnlyOne = Field(None, description="Only 1 answer.")
    n: _OnlyOne = Field(None, description="Only 1; another name of n_cmpl.")
    dry_multiplier: _UnsupportedNumber = Field(None, description="Only 0.")
    xtc_probability: _UnsupportedNumber = Field(None, description="Only 0.")
    dynatemp_range: _UnsupportedNumber = Field(None, description="Only 0.")
    mirostat: _UnsupportedNumber = Field(None, description="Only 0.")
    top_n_sigma: _UnsupportedNumber = Field(None, description="Only -1 or 0.")
    adaptive_target: _UnsupportedNumber = Field(None, description="Only -1.")
    post_sampling_probs: Unsupported = Field(
        None, description="Only false: n_probs tells of the model's own distribution."
    )
    lora: Unsupported = Field(None, description="Not supported.")

    @model_validator(mode="after")
    def _asks_for_one_form(self) -> InfillRequest:
        if self.grammar is not None and self.json_schema is not None:
            raise ValueError("grammar and json_schema each ask for a form of the text; give one")
        return self

    @property
    def text_form(self) -> TextForm | None:
        """Return the form that the answer must have; None for any."""
        if self.json_schema is not None:
            return schema_form("json_schema", self.json_schema)
        if self.grammar is not None:
            return grammar_form("grammar", self.grammar)
        return None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is sent as it comes."""
        return bool(self.stream)

    @property
    def max_seconds_of_text(self) -> float | None:
        """Return the time limit of t_max_predict_ms."""
        limit_ms = self.t_max_predict_ms
        return limit_ms / 1000 if limit_ms is not None and limit_ms > 0 else None

    @property
    def num_probs(self) -> int:
        """How many likeliest tokens are told; 0 tells no logprobs."""
        return self.value_of("n_probs") or 0

    @property
    def reports_prompt(self) -> bool:
        """Whether the answer shows the prompt."""
        return self.response_fields is None or "prompt" in self.response_fields

    @property
    def token_biases(self) -> Biases:
        """Return the biases, of ids and of texts."""
        return self.logit_bias or []
