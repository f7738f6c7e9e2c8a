"""What text-generation-inference answers, as typed models.

`service.api.tgi.answers` fills them in.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, RootModel

from service.api.answer_model import AnswerModel

Reason: TypeAlias = Literal["length", "eos_token", "stop_sequence"]


class PrefillToken(AnswerModel):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None = Field(description="null for the first.")


class Token(AnswerModel):
    """A token of an answer."""

    id: int
    text: str = Field(description="Its part of the text; special pieces show here only.")
    logprob: float = Field(description="By the model alone, whatever settings changed after it.")
    special: bool = Field(description="Not part of generated_text.")


class AnswerEnd(AnswerModel):
    """How an answer ended."""

    finish_reason: Reason
    generated_tokens: int
    seed: int | None = Field(description="Which makes the same answer again; null where greedy.")


class AnswerDetails(AnswerEnd):
    """What is told of an answer, whichever of several it is."""

    prefill: list[PrefillToken] = Field(description="Empty without decoder_input_details.")
    tokens: list[Token]


class AnswerText(AnswerModel):
    """An answer's text."""

    generated_text: str


# The text is sent first: fields come in the order of the bases from the last to the first.
class BestOfSequence(AnswerDetails, AnswerText):
    """One answer, with what is told of it."""

    top_tokens: list[list[Token]] | None = Field(default=None, description="With top_n_tokens.")


class Details(AnswerDetails):
    """What is told of an answer."""

    best_of_sequences: list[BestOfSequence] | None = Field(
        default=None, description="With best_of: the answers that were not the best."
    )
    top_tokens: list[list[Token]] | None = Field(default=None, description="With top_n_tokens.")


class GeneratedText(AnswerText):
    """A whole answer."""

    details: Details | None = Field(default=None, description="Where asked for.")


class GeneratedTexts(RootModel[list[GeneratedText]]):
    """A whole answer of POST /: a list of one."""


class StreamDetails(AnswerEnd):
    """What is told of a streamed answer, at its end."""

    input_length: int


class StreamedToken(AnswerModel):
    """One event of a streamed answer."""

    index: int = Field(description="From 1.")
    token: Token
    top_tokens: list[Token] | None = Field(default=None, description="With top_n_tokens.")
    generated_text: str | None = Field(description="The whole text, with the last token.")
    details: StreamDetails | None = Field(description="With the last token, where asked for.")
