"""What a model writes is read as items, and tokens are told with the text that they make."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.openai.responses.output import TurnOutput
from service.api.openai.responses.reading import TurnReading
from service.serving.answer_tokens import AnswerToken
from service.tools.turn_reader import PlainReader, TurnReader
from tests.service.api.openai.responses.turns import MarkedReader

TURN = '<think>Hm<say>Yes.<call>look<args>{"a":1}<end>Bye'


def written(tokens: list[AnswerToken]) -> bytes:
    """Tokens as a list of where they are; enough to see which they are."""
    return json.dumps([token.offset for token in tokens]).encode()


def letters(text: str) -> list[AnswerToken]:
    return [AnswerToken(0, None, n, n + 1) for n in range(len(text))]


def reading_of(reader: TurnReader, *, logprobs: bool = True) -> TurnReading:
    return TurnReading(reader, TurnOutput("n"), written if logprobs else None)


def read(reading: TurnReading, text: str, size: int) -> list[dict[str, Any]]:
    events = []
    tokens = letters(text)
    for begin in range(0, len(text), size):
        end = begin + size
        events += reading.read(text[begin:end], tokens[begin:end])
    return events + reading.finish(is_cut=False)


@pytest.mark.parametrize("size", range(1, 60))
def test_items_are_the_same_however_the_text_comes(size):
    reading = reading_of(MarkedReader(), logprobs=False)
    read(reading, TURN, size)
    thought, said, call, bye = reading.output.items
    assert thought["content"][0]["text"] == "Hm"
    assert said["content"][0]["text"] == "Yes."
    assert (call["name"], call["arguments"]) == ("look", '{"a":1}')
    assert bye["content"][0]["text"] == "Bye"
    assert said["content"][0]["logprobs"] == []


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_plain_text_tells_all_its_tokens(size):
    reading = reading_of(PlainReader())
    read(reading, "Yes, it is", size)
    (item,) = reading.output.items
    assert item["content"][0]["logprobs"] == list(range(10))


def test_tokens_of_marks_thoughts_and_calls_are_not_told():
    text = "<think>Hm<say>Yes."
    reading = reading_of(MarkedReader())
    read(reading, text, 1)
    _, said = reading.output.items
    begin = text.index("Yes.")
    assert said["content"][0]["logprobs"] == list(range(begin, begin + 4))


def test_each_delta_tells_the_tokens_of_its_own_text():
    reading = reading_of(PlainReader())
    deltas = [event for event in read(reading, "abcd", 2) if event["type"].endswith(".delta")]
    assert [event["logprobs"] for event in deltas] == [[0, 1], [2, 3]]


def test_tokens_wait_as_long_as_their_text_is_held_back():
    text = "a<b"  # the reader waits whether a mark begins
    reading = reading_of(MarkedReader())
    told = [event.get("logprobs") for event in read(reading, text, 1) if "delta" in event["type"]]
    assert [position for one in told for position in one] == [0, 1, 2]
