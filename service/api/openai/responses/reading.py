"""Reads what a model writes as an answer's items, with the logprobs of the text in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from service.tools.turn_events import TextPiece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.api.openai.responses.output import Fields, TurnOutput
    from service.serving.answer_tokens import AnswerToken
    from service.tools.turn_events import TurnEvent
    from service.tools.turn_reader import TurnReader


class TextTokens:
    """Hold tokens back until it is known whether their text is read by people.

    A reader of turns leaves out marks, and may hold text back. Where what it has told ends as the
    model's own text does, it is made of the last tokens; those before them made a mark.
    """

    def __init__(self) -> None:
        self._num_written = 0  # characters of the model's text so far
        self._written = ""  # since tokens were told last
        self._told = ""  # of that
        self._waiting: list[AnswerToken] = []

    def push(
        self, text: str, tokens: Sequence[AnswerToken], events: Sequence[TurnEvent]
    ) -> list[AnswerToken]:
        """Return the tokens of what is told now; text: what the events were read from."""
        self._num_written += len(text)
        self._written += text
        self._waiting += tokens
        for event in events:
            self._told = self._told + event.text if isinstance(event, TextPiece) else ""
        if events and not isinstance(events[-1], TextPiece):
            self._waiting, self._written = [], ""
        if not self._told or not self._written.endswith(self._told):
            return []
        begin = self._num_written - len(self._told)
        told = [token for token in self._waiting if token.offset >= begin]
        self._waiting, self._written, self._told = [], "", ""
        return told


class TurnReading:
    """Reads one turn, as it comes."""

    def __init__(
        self,
        reader: TurnReader,
        output: TurnOutput,
        write_logprobs: Callable[[Sequence[AnswerToken]], bytes] | None,
    ) -> None:
        """write_logprobs: makes a JSON list of tokens; None where they are not told."""
        self.output = output
        self._reader = reader
        self._write_logprobs = write_logprobs
        self._tokens = TextTokens()

    def read(self, text: str, tokens: Sequence[AnswerToken]) -> list[Fields]:
        """Return the events of more text."""
        return self._tell(text, tokens, self._reader.push(text))

    def finish(self, *, is_cut: bool) -> list[Fields]:
        """Return the events of the end; is_cut: by length."""
        events = self._tell("", (), self._reader.flush(is_cut=is_cut))
        return events + self.output.finish(is_cut=is_cut)

    def _tell(
        self, text: str, tokens: Sequence[AnswerToken], events: Sequence[TurnEvent]
    ) -> list[Fields]:
        if self._write_logprobs is None:
            return [told for event in events for told in self.output.push(event)]
        logprobs: list[Any] = []
        if its_tokens := self._tokens.push(text, tokens, events):
            logprobs = msgspec.json.decode(self._write_logprobs(its_tokens))
        told: list[Fields] = []
        last = max((n for n, event in enumerate(events) if isinstance(event, TextPiece)), default=0)
        for number, event in enumerate(events):
            told += self.output.push(event, logprobs if number == last else ())
        return told
