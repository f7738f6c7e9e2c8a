"""Answers that end before a line which is indented too little, and what is told of their tokens."""

from __future__ import annotations

import pytest

from engine.outputs import FinishReason, TokenLogprobs, TokenOutput
from engine.sampling_params import SamplingParams
from service.serving.choice_reader import DetailedReader, make_reader
from service.serving.generation_request import AnswerForm, PlannedChoice
from service.serving.prompts import Prompt
from tests.service.fakes import END, ByteTokenizer, FakeEngine, says, served_model

TEXT = "a\n    b\nc"


@pytest.fixture(scope="module")
def model():
    tokenizer = ByteTokenizer()
    return served_model(FakeEngine(says(tokenizer, "")), tokenizer)


def read(model, text: str, **form: object):
    """Read a text token by token; return its deltas."""
    params = SamplingParams(max_tokens=99, eos_token_ids=frozenset({END}))
    choice = PlannedChoice(Prompt([0]), params)
    reader = make_reader(0, choice, AnswerForm(min_indent=4, **form), model)
    assert isinstance(reader, DetailedReader)
    reader.begin(())
    ids = [*model.tokenizer.encode(text, add_special_tokens=False), END]
    deltas = []
    for token_id in ids:
        reason = FinishReason.STOP if token_id == END else None
        output = TokenOutput(0, token_id, TokenLogprobs(-1.0, ()), reason)
        delta = reader.read([output])
        deltas += [delta] if delta else []
        if delta and delta.finish_reason:
            break
    return deltas


def text_of(deltas) -> str:
    return "".join(delta.text for delta in deltas)


def test_text_ends_with_its_last_good_line(model):
    deltas = read(model, TEXT)
    assert text_of(deltas) == "a\n    b"
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert deltas[-1].stop_reason is None


def test_text_that_ends_by_itself_keeps_what_was_held_back(model):
    deltas = read(model, "a\n")
    assert text_of(deltas) == "a\n"
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_tokens_of_what_was_cut_off_are_not_told(model):
    deltas = read(model, TEXT, reports_tokens=True)
    tokens = [token for delta in deltas for token in delta.tokens]
    assert len(tokens) == len("a\n    b")
    assert [token.offset for token in tokens] == list(range(len(tokens)))


def test_stop_string_before_the_line_ends_the_text_first(model):
    deltas = read(model, TEXT, stop_strings=["b"])
    assert text_of(deltas) == "a\n    "
    assert deltas[-1].stop_reason == "b"


def test_stop_string_behind_the_line_has_ended_nothing(model):
    deltas = read(model, "a\nxy", stop_strings=["xy"])
    assert text_of(deltas) == "a\n"
    assert deltas[-1].stop_reason == "xy"
    deltas = read(model, "a\nbxy", stop_strings=["xy"])
    assert text_of(deltas) == "a"
    assert deltas[-1].stop_reason is None


def test_time_limit_sees_line_ends_that_are_held_back(model):
    deltas = read(model, "a\n  ", max_seconds_of_text=0.0)
    assert text_of(deltas) == "a\n"
    assert deltas[-1].finish_reason is FinishReason.LENGTH
