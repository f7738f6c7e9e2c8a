"""The form that an answer's text must have, in every spelling that clients use for it.

OpenAI's `response_format`, the additions of Hugging Face's and llama.cpp's clients to it, vLLM's
`structured_outputs` and its older `guided_…` fields. A request asks for one form: two fields that
both say something are refused, as one of them would be without effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from service.api.json_bodies import read_json
from service.api.requests import EMPTY_IS_SILENCE, Flag, RequestModel, Text, is_empty
from service.errors import InvalidJsonError
from service.grammars.json_schema import ANY_OBJECT, JsonSchema
from service.grammars.limits import MAX_CHOICES, MAX_SCHEMA_NODES, MAX_SOURCE_BYTES
from service.grammars.wanted import TextForm, TextFormKind

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_schema(value: object) -> JsonSchema | None:
    """Take a schema as an object, or as the text of one."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = _read_text(value)
    if not isinstance(value, dict | bool):
        raise ValueError("give a JSON schema: an object")
    return value


def _read_text(text: str) -> object:
    if len(text) > MAX_SOURCE_BYTES:
        raise ValueError(f"has {len(text)} characters; give at most {MAX_SOURCE_BYTES}")
    try:
        return read_json(text.encode(errors="surrogatepass"), MAX_SCHEMA_NODES, "the text")
    except InvalidJsonError as error:
        raise ValueError(f"{error}; give a JSON schema: an object") from None


def _read_choices(value: object) -> list[str] | None:
    if is_empty(value):
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("give a list of strings")
    if len(value) > MAX_CHOICES:
        raise ValueError(f"has {len(value)} texts; give at most {MAX_CHOICES}")
    if not all(value):
        raise ValueError("holds an empty text; leave it out")
    return list(value)


def _check_format(value: object) -> object:
    kinds = ("text", "json_object", "json_schema")
    if isinstance(value, dict) and value.get("type") not in (None, *kinds):
        raise PydanticCustomError(
            "unsupported_field",
            f"its type may be {', '.join(kinds)}; for other forms use structured_outputs with"
            " regex, choice or grammar",
        )
    return value


# An empty schema allows any JSON where something else says that JSON is meant; else it is silence.
Schema = Annotated[
    JsonSchema | None,
    PlainValidator(read_schema, json_schema_input_type=dict[str, Any] | bool | str | None),
]
FormSchema = Annotated[Schema, EMPTY_IS_SILENCE]
Choices = Annotated[
    list[str] | None, PlainValidator(_read_choices, json_schema_input_type=list[str] | None)
]


class NamedSchema(RequestModel):
    """A JSON schema, with what OpenAI's clients say beside it."""

    name: Text = Field(None, description="For people; without effect on the answer.")
    description: Text = Field(None, description="For people; without effect on the answer.")
    schema_: Schema = Field(None, alias="schema", description="The JSON schema.")
    strict: bool | None = Field(
        None, description="Answers follow the schema in either case, strictly."
    )

    @model_validator(mode="after")
    def _has_schema(self) -> NamedSchema:
        if self.schema_ is None:
            raise ValueError("has no schema; give one")
        return self


class ResponseFormat(RequestModel):
    """What kind of text an answer is."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="`text`: any. `json_object`: a JSON object, of `schema` where there is one."
        " `json_schema`: JSON of that schema."
    )
    json_schema: Annotated[NamedSchema | None, EMPTY_IS_SILENCE] = Field(
        None, description="With type `json_schema`."
    )
    schema_: Schema = Field(
        None, alias="schema", description="With type `json_object`: a JSON schema."
    )
    value: Schema = Field(None, description="Another name of `schema`.")

    @model_validator(mode="after")
    def _agrees(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError('is of type "json_schema" without json_schema; give one')
        given = [one for one in (self.schema_, self.value) if not is_empty(one)]
        if len(given) > 1 and given[0] != given[1]:
            raise ValueError("schema and value mean the same and differ; give one of them")
        return self

    def own_ignored(self) -> list[str]:
        """Name what was given and has no effect: what belongs to another type."""
        effects = {"json_schema": ("json_schema",), "json_object": ("schema", "value")}
        given = {"json_schema": self.json_schema, "schema": self.schema_, "value": self.value}
        others = [name for name in given if name not in effects.get(self.type, ())]
        return [*super().own_ignored(), *(name for name in others if not is_empty(given[name]))]

    @property
    def wanted(self) -> JsonSchema | None:
        """Return the schema of the text; None for any text."""
        if self.type == "text":
            return None
        if self.type == "json_schema" and self.json_schema is not None:
            return self.json_schema.schema_
        given = self.schema_
        if is_empty(given) and self.value is not None:
            given = self.value
        return ANY_OBJECT if given is None else given


class StructuredOutputs(RequestModel):
    """One form of text, in vLLM's words."""

    json_: FormSchema = Field(None, alias="json", description="A JSON schema.")
    json_object: Flag = Field(None, description="true: any JSON object.")
    regex: Text = Field(None, description="A regular expression that the whole text matches.")
    choice: Choices = Field(None, description="The text is one of these.")
    grammar: Text = Field(None, description="A grammar of Lark's, or GBNF.")

    @property
    def forms(self) -> list[TextForm]:
        """Return the forms that it asks for."""
        prefix = "structured_outputs."
        return _forms_of(
            schemas={
                f"{prefix}json": self.json_,
                f"{prefix}json_object": ANY_OBJECT if self.json_object else None,
            },
            regexes={f"{prefix}regex": self.regex},
            choices={f"{prefix}choice": self.choice},
            grammars={f"{prefix}grammar": self.grammar},
        )


Format = Annotated[ResponseFormat | None, BeforeValidator(_check_format), EMPTY_IS_SILENCE]


class FormedRequest(RequestModel):
    """A request that may ask for one form of text."""

    response_format: Format = Field(
        None, description="The kind of text, in OpenAI's words; any by default."
    )
    structured_outputs: Annotated[StructuredOutputs | None, EMPTY_IS_SILENCE] = Field(
        None, description="The form of the text, in vLLM's words."
    )
    guided_json: FormSchema = Field(None, description="Another name of structured_outputs.json.")
    guided_regex: Text = Field(None, description="Another name of structured_outputs.regex.")
    guided_choice: Choices = Field(None, description="Another name of structured_outputs.choice.")
    guided_grammar: Text = Field(None, description="Another name of structured_outputs.grammar.")
    json_schema: FormSchema = Field(
        None, description="A JSON schema that the text follows, in llama.cpp's words."
    )
    grammar: Text = Field(
        None, description="A grammar that the text follows: llama.cpp's GBNF, or Lark's."
    )
    regex: Text = Field(None, description="A regular expression that the whole text matches.")

    @model_validator(mode="after")
    def _asks_for_one_form(self) -> FormedRequest:
        forms = self._forms
        if len(forms) > 1:
            names = " and ".join(form.param for form in forms)
            raise ValueError(f"{names} each ask for a form of the text; give one of them")
        return self

    @property
    def text_form(self) -> TextForm | None:
        """Return the form that the answer's text must have; None for any text."""
        return next(iter(self._forms), None)

    @property
    def _forms(self) -> list[TextForm]:
        outputs, asked = self.structured_outputs, self.response_format
        return [
            *_forms_of(
                schemas={
                    "response_format": asked.wanted if asked is not None else None,
                    "guided_json": self.guided_json,
                    "json_schema": self.json_schema,
                },
                regexes={"guided_regex": self.guided_regex, "regex": self.regex},
                choices={"guided_choice": self.guided_choice},
                grammars={"guided_grammar": self.guided_grammar, "grammar": self.grammar},
            ),
            *(outputs.forms if outputs is not None else ()),
        ]


def _forms_of(
    schemas: Mapping[str, JsonSchema | None],
    regexes: Mapping[str, str | None],
    choices: Mapping[str, list[str] | None],
    grammars: Mapping[str, str | None],
) -> list[TextForm]:
    """Return what is asked for, by field."""
    texts = [
        *((TextFormKind.REGEX, param, text and [text]) for param, text in regexes.items()),
        *((TextFormKind.CHOICE, param, several) for param, several in choices.items()),
        *((TextFormKind.GRAMMAR, param, text and [text]) for param, text in grammars.items()),
    ]
    return [
        *(schema_form(param, schema) for param, schema in schemas.items() if schema is not None),
        *(TextForm(kind, param, texts=given) for kind, param, given in texts if given),
    ]


def schema_form(param: str, schema: JsonSchema) -> TextForm:
    """Return the form of JSON that follows a schema."""
    return TextForm(TextFormKind.JSON_SCHEMA, param, schema=schema)


def grammar_form(param: str, grammar: str) -> TextForm:
    """Return the form of texts of a grammar."""
    return TextForm(TextFormKind.GRAMMAR, param, texts=(grammar,))


def regex_form(param: str, pattern: str) -> TextForm:
    """Return the form of texts that a pattern matches as a whole."""
    return TextForm(TextFormKind.REGEX, param, texts=(pattern,))
