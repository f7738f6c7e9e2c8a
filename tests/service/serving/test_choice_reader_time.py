"""Answers whose time is up: they end with the line that they are in."""

from __future__ import annotations

import pytest

from engine.outputs import FinishReason, TokenOutput
from engine.sampling_params import SamplingParams
from service.serving import choice_reader
from service.serving.choice_reader import make_reader
from service.serving.generation_request import AnswerForm, PlannedChoice
from service.serving.prompts import Prompt
from tests.replaced import replace_within
from tests.service.fakes import ByteTokenizer, FakeEngine, says, served_model


@pytest.fixture
def model():
    tokenizer = ByteTokenizer()
    return served_model(FakeEngine(says(tokenizer, "")), tokenizer)


@pytest.fixture
def read(monkeypatch, model):
    """Read a text's tokens, so many at once, of which each step takes a second."""
    now = [0.0]
    replace_within(monkeypatch, choice_reader, "time", monotonic=lambda: now[0])

    def read(text: str, limit_s: float, *, at_once: int = 1, **form: object):
        form = AnswerForm(max_seconds_of_text=limit_s, **form)
        choice = PlannedChoice(Prompt([0]), SamplingParams(max_tokens=99))
        reader = make_reader(0, choice, form, model)
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        deltas = []
        for start in range(0, len(ids), at_once):
            step = [TokenOutput(0, i, None, None) for i in ids[start : start + at_once]]
            delta = reader.read(step)
            now[0] += 1
            deltas += [delta] if delta else []
            if delta and delta.finish_reason:
                break
        return "".join(delta.text for delta in deltas), deltas[-1]

    return read


def test_text_goes_on_to_the_end_of_the_line_in_which_its_time_is_up(read):
    text, last = read("a\nbcd\nef", 3)
    assert text == "a\nbcd\n"
    assert last.finish_reason is FinishReason.LENGTH
    assert last.stop_reason is None


def test_line_end_right_at_the_limit_ends_it(read):
    assert read("abc\nd\n", 3)[0] == "abc\n"
    assert read("abc\nd\n", 3.5)[0] == "abc\nd\n"


def test_text_of_one_line_goes_on(read):
    text, last = read("abcdef", 1)
    assert text == "abcdef"
    assert last.finish_reason is None


def test_tokens_that_come_together_are_looked_at_one_by_one(read):
    text, last = read("abc\ndef\ngh", 0, at_once=10, reports_token_ids=True)
    assert text == "abc\n"
    assert len(last.token_ids) == 4


def test_line_end_that_may_begin_a_stop_string_ends_it(read):
    text, last = read("ab\ncd", 1, stop_strings=["\n\n"])
    assert text == "ab\n"
    assert last.finish_reason is FinishReason.LENGTH


def test_line_end_with_which_a_stop_string_is_complete_is_the_stop_string_s(read):
    text, last = read("ab\ncd", 1, stop_strings=["b\n"])
    assert text == "a"
    assert last.finish_reason is FinishReason.STOP
    assert last.stop_reason == "b\n"
