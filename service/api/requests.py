"""What every API's request bodies are made of: the base model, its bounds, shared kinds of fields.

Types are strict (5.0 is no integer, "5" no number), names are not: what a model does not know is
kept apart and named to the client, see `service.api.request_bodies`. What depends on the served
model is checked in `service.serving`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.sampling_params import MAX_BIAS, MAX_PENALTY, MAX_SEED
from service.text.bad_words import MAX_WORD_BYTES, MAX_WORDS

# Far above any context; it keeps numbers that no machine integer holds out of the arithmetic.
MAX_COUNT = 2**31 - 1
MAX_NAME_LENGTH = 512
MAX_FIELDS = 64  # of one object that no model knows
# What happens to fields without effect: they are named in the answer's x-ignored-params, refused by
# name, or nothing is said.
UnknownFields: TypeAlias = Literal["warn", "strict", "ignore"]
# In a field's json_schema_extra: it is taken, and does nothing.
NO_EFFECT: dict[str, Any] = {"effect": "none"}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How much one request may ask; from the settings."""

    max_choices: int
    max_prompts: int
    max_messages: int
    max_stop_strings: int
    max_stop_bytes: int
    max_token_ids: int = 1024  # that one field names
    max_body_parts: int = 150_000  # objects, lists and strings; 3 other values count as one
    unknown_fields: UnknownFields = "warn"
    may_set_priority: bool = False


def limits_of(info: ValidationInfo) -> RequestLimits:
    """Return the limits that a body is checked by."""
    if not isinstance(info.context, RequestLimits):
        raise TypeError("request models are validated with RequestLimits as their context")
    return info.context


class RequestModel(BaseModel):
    """An object in a request's body: typed strictly; keeps apart the names it does not know."""

    model_config = ConfigDict(
        strict=True, extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    # Fields that have several names: the first is the one that counts.
    other_names: ClassVar[dict[str, tuple[str, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_num_fields(cls, fields: object) -> object:
        # Else pydantic would keep each of a million unknown names.
        most = len(cls.model_fields) + MAX_FIELDS
        if isinstance(fields, dict) and len(fields) > most:
            raise ValueError(f"has {len(fields)} fields; give at most {most}")
        return fields

    @model_validator(mode="after")
    def _names_agree(self) -> RequestModel:
        for name, others in self.other_names.items():
            given = [one for one in (name, *others) if getattr(self, one) is not None]
            if any(getattr(self, one) != getattr(self, given[0]) for one in given):
                raise ValueError(
                    f"{' and '.join(given)} mean the same and differ; give one of them"
                )
        return self

    def own_ignored(self) -> list[str]:
        """Name the fields that were given and have no effect, but for those of objects within."""
        extra = self.model_extra or {}
        fields = type(self).model_fields
        known = [name for name, field in fields.items() if field.json_schema_extra == NO_EFFECT]
        return [
            *(name for name, value in extra.items() if not is_empty(value)),
            *(name for name in known if not is_neutral(getattr(self, name))),
        ]

    def value_of(self, name: str) -> Any:
        """Return a field's value under whichever of its names it was given; None if under none."""
        names = (name, *self.other_names.get(name, ()))
        return next((found for n in names if (found := getattr(self, n)) is not None), None)

    def given_name_of(self, name: str) -> str:
        """Return the name under which a field was given; its first where it was not."""
        names = (name, *self.other_names.get(name, ()))
        return next((n for n in names if getattr(self, n) is not None), name)


class ClosedModel(RequestModel):
    """A body in which an unknown name is a mistake, as what it asks for changes the server."""

    model_config = ConfigDict(extra="forbid")


def ignored_paths(model: RequestModel, prefix: str = "") -> list[str]:
    """Name what was given and has no effect, at any depth; items of a list share one name."""
    found = dict.fromkeys(prefix + name for name in model.own_ignored())
    for name, value in model:
        places = "[]." if isinstance(value, list) else "."
        for inner in _models_in(value):
            found |= dict.fromkeys(ignored_paths(inner, f"{prefix}{name}{places}"))
    return list(found)


def _models_in(value: object) -> list[RequestModel]:
    values = value if isinstance(value, list) else [value]
    return [inner for inner in values if isinstance(inner, RequestModel)]


def is_empty(value: object) -> bool:
    """Whether a value says no more than its absence would."""
    return value is None or value == "" or value == [] or value == {}


def is_neutral(value: object) -> bool:
    """Whether a value of a field that this server knows asks for no more than silence would."""
    return is_empty(value) or value is False


# ── kinds of fields ─────────────────────────────────────────────────────────────────────────────


def none_if(*neutral: object) -> BeforeValidator:
    """Take neutral values for silence."""

    def read(value: object) -> object:
        is_one = any(
            value == one and isinstance(value, bool) is isinstance(one, bool) for one in neutral
        )
        return None if is_one else value

    return BeforeValidator(read)


def _none_if_empty(value: object) -> object:
    return None if is_empty(value) else value


# Of lists and objects: PHP's clients write {} as [], and forms leave "" where nothing is.
EMPTY_IS_SILENCE = BeforeValidator(_none_if_empty)


def _refuse(value: object) -> None:
    if is_neutral(value):
        return
    raise PydanticCustomError(
        "unsupported_field", "this server does not support it yet; leave it out"
    )


def _refuse_always(value: object) -> None:
    if is_empty(value):
        return
    raise PydanticCustomError(
        "unsupported_field",
        "no request may bring it; what a variant is served with is its operator's choice",
    )


def _at_most_choices(value: object, info: ValidationInfo) -> object:
    limit = limits_of(info).max_choices
    if type(value) is int and value > limit:
        raise ValueError(f"give at most {limit}")
    return value


def _read_stop(stop: object, info: ValidationInfo) -> list[str] | None:
    if is_empty(stop):
        return None
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise ValueError("give a string or a list of strings")
    limits = limits_of(info)
    if len(strings) > limits.max_stop_strings:
        raise ValueError(f"has {len(strings)} strings; give at most {limits.max_stop_strings}")
    if any(len(string.encode()) > limits.max_stop_bytes for string in strings):
        raise ValueError(f"give strings of at most {limits.max_stop_bytes} bytes")
    return [string for string in strings if string] or None


def is_token_ids(items: object) -> bool:
    """Whether this is a list of integers that may be token ids."""
    # Not isinstance: True is an int there.
    return isinstance(items, list) and all(type(i) is int and 0 <= i <= MAX_COUNT for i in items)


def _read_token_ids(value: object, info: ValidationInfo) -> list[int] | None:
    if is_empty(value):
        return None
    if not isinstance(value, list) or not is_token_ids(value):
        raise ValueError("give a list of token ids (integers of at least 0)")
    _require_few(len(value), info)
    return value


def _require_few(num_tokens: int, info: ValidationInfo) -> None:
    most = limits_of(info).max_token_ids
    if num_tokens > most:
        raise ValueError(f"names {num_tokens} tokens; give at most {most}")


def _read_logit_bias(value: object, info: ValidationInfo) -> dict[int, float] | None:
    if is_empty(value):
        return None
    if not isinstance(value, dict):
        raise ValueError("give an object of token ids and biases")
    _require_few(len(value), info)
    return {_token_id(name): _bias(bias) for name, bias in value.items()}


def _token_id(name: object) -> int:
    text = str(name)
    # The length first: Python refuses to read thousands of digits, in words of its own.
    is_id = len(text) <= len(str(MAX_COUNT)) and text.isascii() and text.isdecimal()
    # Of "1" and "01" one would take the other's place.
    if not is_id or int(text) > MAX_COUNT or text != str(int(text)):
        raise ValueError(
            f"its names must be token ids: integers of 0 to {MAX_COUNT}, without leading zeros"
        )
    return int(text)


def _bias(bias: object) -> float:
    if isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > MAX_BIAS:
        raise ValueError(f"give biases of {-MAX_BIAS:g} to {MAX_BIAS:g}")
    return float(bias)


def _read_words(value: object) -> list[str] | None:
    if is_empty(value):
        return None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError("give a list of strings")
    if len(value) > MAX_WORDS:
        raise ValueError(f"has {len(value)} words; give at most {MAX_WORDS}")
    if any(len(word.encode()) > MAX_WORD_BYTES for word in value):
        raise ValueError(f"give words of at most {MAX_WORD_BYTES} bytes")
    return [word for word in value if word] or None


# Bounds stand inside, beside the type: around a validator they would be asked of null, too.
Text = Annotated[str | None, none_if("")]  # where empty is absent
Name = Annotated[Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | None, none_if("")]
# Several clients say "no bound" with -1, llama.cpp's with -2 too ("until the context is full").
MaxTokens = Annotated[Annotated[int, Field(ge=0, le=MAX_COUNT)] | None, none_if(-1, -2)]
Seed = Annotated[Annotated[int, Field(ge=0, le=MAX_SEED)] | None, none_if(-1)]
# Neutral values are silence here, so that one of several names may have one beside another.
Share = Annotated[Annotated[float, Field(gt=0, le=1)] | None, none_if(1)]
RepetitionPenalty = Annotated[Annotated[float, Field(gt=0, le=100)] | None, none_if(1)]
Flag = Annotated[bool | None, none_if(False)]
NumChoices = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_at_most_choices)]
Stop = Annotated[
    list[str] | None, PlainValidator(_read_stop, json_schema_input_type=str | list[str] | None)
]
TokenIds = Annotated[
    list[int] | None, PlainValidator(_read_token_ids, json_schema_input_type=list[int] | None)
]
LogitBias = Annotated[
    dict[int, float] | None,
    PlainValidator(_read_logit_bias, json_schema_input_type=dict[str, float] | None),
]
Words = Annotated[
    list[str] | None, PlainValidator(_read_words, json_schema_input_type=list[str] | None)
]
# How tokens are picked, where two APIs mean the same by a field.
Temperature = Annotated[
    float | None,
    Field(ge=0, le=2, description="0 picks the most likely token. The variant's own by default."),
]
TopK = Annotated[
    int | None,
    Field(
        ge=-1,
        le=MAX_COUNT,
        description="How many tokens to pick from; 0 and -1 are all. The variant's own by default.",
    ),
]
TopP = Annotated[
    float | None,
    Field(gt=0, le=1, description="Share of probability to pick from. The variant's by default."),
]
MinP = Annotated[
    float | None,
    Field(ge=0, le=1, description="Drop tokens below this share of the likeliest one's."),
]
PresencePenalty = Annotated[
    float | None,
    Field(
        ge=-MAX_PENALTY,
        le=MAX_PENALTY,
        description="Taken off the logit of each token that was generated already.",
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    Field(
        ge=-MAX_PENALTY,
        le=MAX_PENALTY,
        description="Taken off a token's logit for every time that it was generated.",
    ),
]
# Known, and without effect here.
Ignored = Annotated[
    Any, Field(None, description="Taken, and without effect.", json_schema_extra=NO_EFFECT)
]
# Known, and refused where it says anything: to leave it out would change the answer.
Unsupported = Annotated[Any, AfterValidator(_refuse)]
# Never a request's business.
Forbidden = Annotated[Any, AfterValidator(_refuse_always)]
