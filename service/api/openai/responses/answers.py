"""Writes what POST /v1/responses answers, whole or as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.outputs import FinishReason
from service.api.openai.chat_answers import LogprobsWriter
from service.api.openai.responses.answer_models import ResponseObject
from service.api.openai.responses.frames import ResponseFrames
from service.api.openai.responses.output import TurnOutput
from service.api.openai.responses.reading import TurnReading
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.api.openai.responses.facts import ResponseFacts
    from service.api.openai.responses.request import ResponsesRequest
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.served_model import ServedModel
    from service.tools.turn_reader import TurnReader


class ResponseWriter:
    """Writes the answer to one request."""

    def __init__(
        self,
        request: ResponsesRequest,
        model: ServedModel,
        facts: ResponseFacts,
        new_reader: Callable[[], TurnReader],
    ) -> None:
        self._request = request
        self._model = model
        self._facts = facts
        self._new_reader = new_reader

    def whole(self, generation: Generation, choices: Sequence[CompleteChoice]) -> ResponseObject:
        """Return an answer that is not streamed."""
        (choice,) = choices
        self._facts.note_sampling(generation)
        reading = self._reading()
        reading.read(choice.text, choice.tokens)
        is_cut = choice.finish_reason is FinishReason.LENGTH
        reading.finish(is_cut=is_cut)
        ended = self._facts.ended(reading.output, generation, is_cut=is_cut)
        return ResponseObject.model_validate(ended)

    def frames(self, generation: Generation) -> ResponseFrames:
        """Return the frames of an answer that is streamed."""
        self._facts.note_sampling(generation)
        return ResponseFrames(self._facts, self._reading(), generation)

    def _reading(self) -> TurnReading:
        output = TurnOutput(self._facts.name, self._request.custom_tools)
        num_top = self._request.num_logprobs
        write = None
        if num_top is not None:
            write = LogprobsWriter(TokenTexts(self._model.tokenizer), num_top).write_list
        return TurnReading(self._new_reader(), output, write)
