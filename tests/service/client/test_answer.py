"""What one event of a stream says."""

from __future__ import annotations

import json

import pytest

from service.client.answer import AnswerPiece, TokenUsage, read_piece
from service.client.errors import BrokenAnswerError


def piece(**chunk: object) -> AnswerPiece:
    return read_piece(json.dumps(chunk))


def test_text_of_chats_and_of_completions_is_read():
    assert piece(choices=[{"delta": {"content": "a"}}]) == AnswerPiece(text="a")
    assert piece(choices=[{"text": "b", "finish_reason": "stop"}]) == AnswerPiece(
        text="b", finish_reason="stop"
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_read_under_either_name(name):
    assert piece(choices=[{"delta": {name: "hm", "content": None}}]) == AnswerPiece(reasoning="hm")


def test_usage_is_read_where_there_are_no_choices():
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    assert piece(choices=[], usage=usage).usage == TokenUsage(3, 4)


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": None, "usage": None},
        {"choices": [None]},
        {"choices": [{"delta": None, "text": None}]},
        {"choices": [{"delta": {"content": 5, "tool_calls": [{}]}}]},
        {"choices": [{"delta": {}}], "usage": {"prompt_tokens": "3"}},
    ],
)
def test_what_says_nothing_is_an_empty_piece(chunk):
    assert piece(**chunk) == AnswerPiece()


@pytest.mark.parametrize("error", [{"message": "out of memory"}, "out of memory"])
def test_an_error_in_the_stream_is_raised_with_its_words(error):
    with pytest.raises(BrokenAnswerError, match="the answer failed: out of memory"):
        piece(error=error)


@pytest.mark.parametrize("data", ["", "[]", "5", "{", "<html>", "[" * 100_000])
def test_what_is_no_object_is_raised(data):
    with pytest.raises(BrokenAnswerError, match="no piece of an answer"):
        read_piece(data)
