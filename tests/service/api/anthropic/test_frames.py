"""The events of a stream, of turns that hold thoughts and calls beside text."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from engine.outputs import FinishReason
from service.api.anthropic.answers import SIGNATURE, AnswerShape, StreamedEvent
from service.api.anthropic.frames import MessageWriter
from service.serving.choice_reader import TextDelta
from service.serving.generation import Usage
from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
)
from tests.service.api.anthropic.conftest import events_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.tools.turn_events import TurnEvent

TURN = '[so, "hm"]Grüße!(look{"a": "ä"})(look{})and'


class MarkedReader:
    """Reads thoughts in [] and calls of `look` in (), letter by letter."""

    def __init__(self) -> None:
        self._kind = "text"
        self.num_calls = 0
        self._name = ""

    def push(self, text: str) -> Sequence[TurnEvent]:
        return [event for letter in text for event in self._read(letter)]

    def flush(self, *, is_cut: bool) -> Sequence[TurnEvent]:
        return () if is_cut or self._kind != "text" else (TextPiece("."),)

    def _read(self, letter: str) -> list[TurnEvent]:
        index = self.num_calls
        if letter in "[(":
            self._kind, self._name = {"[": "thoughts", "(": "name"}[letter], ""
            return []
        if letter in "])":
            ended, self._kind = self._kind, "text"
            self.num_calls += letter == ")"
            return [CallEnd(index)] if ended == "call" else []
        if self._kind == "name" and letter != "{":
            self._name += letter
            return []
        if self._kind == "name":
            self._kind = "call"
            return [CallBegin(index, f"call_{index}", self._name), CallArguments(index, "{")]
        if self._kind == "call":
            return [CallArguments(index, letter)]
        return [ReasoningPiece(letter) if self._kind == "thoughts" else TextPiece(letter)]


class Stream:
    """Writes a turn as it comes in pieces."""

    def __init__(self) -> None:
        usage = Usage(prompt_tokens=7, completion_tokens=9, cached_tokens=2)
        self.generation: Any = SimpleNamespace(usage=usage)
        shape = AnswerShape(model="m", request_id="r", new_reader=MarkedReader, is_capped=False)
        self.writer = MessageWriter(shape)

    def written(
        self, *pieces: str, reason: FinishReason = FinishReason.STOP, stop: str | None = None
    ) -> list[dict[str, Any]]:
        frames = self.writer.frames(self.generation)
        told = frames.start(0)
        for piece in pieces:
            told += frames.delta(TextDelta(0, piece, None))
        told += frames.delta(TextDelta(0, "", reason, stop)) + frames.end()
        return events_of(told.decode())

    def whole(self, text: str, reason: FinishReason) -> dict[str, Any]:
        choice: Any = SimpleNamespace(text=text, finish_reason=reason, stop_reason=None)
        return self.writer.whole(self.generation, [choice]).model_dump()


def blocks_in(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put blocks together as clients do; each begins and ends once, in order."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events[1:-2]:
        kind = event["type"]
        assert event["index"] == len(blocks) - (kind != "content_block_start")
        if kind == "content_block_start":
            assert not is_open
            blocks.append({**event["content_block"], "json": ""})
        elif kind == "content_block_delta":
            (name,) = event["delta"].keys() - {"type"}
            into = {"partial_json": "json"}.get(name, name)
            blocks[-1][into] += event["delta"][name]
        is_open = kind != "content_block_stop"
    assert not is_open
    for block in blocks:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments)
    return blocks


def test_thoughts_texts_and_calls_become_blocks_one_after_the_other():
    events = Stream().written(TURN)
    for event in events:
        StreamedEvent.model_validate(event)
    assert blocks_in(events) == [
        {"type": "thinking", "thinking": 'so, "hm"', "signature": SIGNATURE},
        {"type": "text", "text": "Grüße!"},
        {"type": "tool_use", "id": "toolu_0", "name": "look", "input": {"a": "ä"}},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
        {"type": "text", "text": "and."},
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 5
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_the_stream_is_the_same_wherever_it_is_cut_and_as_the_whole_answer():
    stream = Stream()
    whole = stream.whole(TURN, FinishReason.STOP)
    for cut in range(len(TURN) + 1):
        events = stream.written(TURN[:cut], TURN[cut:])
        assert blocks_in(events) == whole["content"]
        assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"]
        assert events[-2]["usage"] == whole["usage"]
    assert blocks_in(stream.written(*TURN)) == whole["content"]


@pytest.mark.parametrize("text", ['a(look{"a": ', "a(look", "[so"])
def test_what_is_cut_off_by_length_is_closed_and_no_call(text):
    events = Stream().written(*text, reason=FinishReason.LENGTH)
    kinds = [event["type"] for event in events]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")
    assert kinds[-3] == "content_block_stop"
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    whole = Stream().whole(text, FinishReason.LENGTH)
    assert [block["type"] for block in whole["content"]] in (["text"], ["thinking"])


def test_the_signature_comes_before_the_thoughts_end():
    events = Stream().written("[so")
    assert events[-4]["delta"] == {"type": "signature_delta", "signature": SIGNATURE}
    assert events[-3]["type"] == "content_block_stop"


def test_a_stop_sequence_is_told():
    events = Stream().written("a", stop="b")
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "b"}
