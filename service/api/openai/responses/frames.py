"""The events that POST /v1/responses streams: each with its name, and numbered from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.outputs import FinishReason
from service.api.error_responses import error_body, error_form
from service.api.frames import KEEP_ALIVE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.api.openai.responses.facts import ResponseFacts
    from service.api.openai.responses.output import Fields
    from service.api.openai.responses.reading import TurnReading
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import Generation

_encode = msgspec.json.Encoder().encode


class EventNumbers:
    """Makes frames of events, and numbers them."""

    def __init__(self) -> None:
        self._next = 0

    def frames(self, events: Iterable[Fields]) -> bytes:
        """Return the frames of these events."""
        return b"".join(map(self._frame, events))

    def _frame(self, event: Fields) -> bytes:
        event["sequence_number"] = self._next
        self._next += 1
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(event))


class ResponseFrames:
    """Makes the server-sent events of one answer."""

    keep_alive = KEEP_ALIVE

    def __init__(self, facts: ResponseFacts, reading: TurnReading, generation: Generation) -> None:
        self._facts = facts
        self._reading = reading
        self._generation = generation
        self._numbers = EventNumbers()
        self._is_cut = False

    def start(self, index: int) -> bytes:  # noqa: ARG002 - there is one answer
        """Return what opens the answer."""
        return self._numbers.frames(beginning(self._facts))

    def delta(self, delta: TextDelta) -> bytes:
        """Return the events of one delta."""
        events = self._reading.read(delta.text, delta.tokens)
        if delta.finish_reason is not None:
            self._is_cut = delta.finish_reason is FinishReason.LENGTH
            events += self._reading.finish(is_cut=self._is_cut)
        return self._numbers.frames(events)

    def end(self) -> bytes:
        """Return what closes the stream: the whole answer."""
        whole = self._facts.ended(self._reading.output, self._generation, is_cut=self._is_cut)
        return self._numbers.frames([_changed(whole)])

    def error(self, error: Exception) -> bytes:
        """Return what ends a stream that failed; what had begun is ended first."""
        output = self._reading.output
        events = output.break_off()
        usage = self._facts.usage(self._generation)
        ending = failure(self._facts, error, output=output.items, usage=usage)
        return self._numbers.frames([*events, *ending])


def failed_stream(facts: ResponseFacts, error: Exception) -> bytes:
    """Return a whole stream that tells of an error and of nothing else."""
    facts.repeat_little()
    return EventNumbers().frames([*beginning(facts), *failure(facts, error)])


def beginning(facts: ResponseFacts) -> list[Fields]:
    """Return the events that open an answer."""
    response = facts.fields("in_progress")
    return [
        {"type": f"response.{what}", "response": response} for what in ("created", "in_progress")
    ]


def failure(facts: ResponseFacts, error: Exception, **known: object) -> list[Fields]:
    """Return the events of an error: itself, and the answer that failed; known: of that."""
    told = error_body(error)["error"]
    form = error_form(error)
    code = form.code or form.type
    reason = {"code": code, "message": told["message"]}
    failed = facts.fields("failed", error=reason, **known)
    return [{"type": "error", **reason, "param": told["param"]}, _changed(failed)]


def _changed(response: Fields) -> Fields:
    return {"type": f"response.{response['status']}", "response": response}
