"""What a reader tells of an answer's end."""

from __future__ import annotations

import pytest

from engine.outputs import FinishReason, TokenOutput
from engine.sampling_params import SamplingParams
from service.serving.choice_reader import make_reader
from service.serving.generation_request import AnswerForm, PlannedChoice
from service.serving.prompts import Prompt
from service.serving.thought_tokens import ThoughtMarks
from tests.service.fakes import END, ByteTokenizer, FakeEngine, says, served_model


def read(text: str, form: AnswerForm) -> tuple[str, list[int], str | int | None]:
    """Read an answer that ends by itself; return text, ids of the tokens told, and the reason."""
    tokenizer = ByteTokenizer()
    model = served_model(FakeEngine(says(tokenizer, "")), tokenizer)
    params = SamplingParams(max_tokens=100, eos_token_ids=frozenset({END}))
    reader = make_reader(0, PlannedChoice(Prompt([0]), params), form, model)
    told: list[int] = []
    written = ""
    for token_id in [*tokenizer.encode(text, add_special_tokens=False), END]:
        reason = FinishReason.STOP if token_id == END else None
        delta = reader.read([TokenOutput(0, token_id, None, reason)])
        if delta is None:
            continue
        written += delta.text
        told += [token.token_id for token in delta.tokens]
        if delta.finish_reason is not None:
            return written, told, delta.stop_reason
    raise AssertionError("the answer has no end")


@pytest.mark.parametrize(
    ("kept", "text"),
    [({}, "on"), ({"keeps_stop_string": True}, "one"), ({"keeps_stop": True}, "one")],
)
def test_stop_string_stays_where_that_is_asked_for(kept, text):
    assert read("one two", AnswerForm(stop_strings=["e"], **kept))[::2] == (text, "e")


def test_end_token_is_no_text_where_only_stop_strings_stay():
    form = AnswerForm(keeps_stop_string=True, skips_special_tokens=False)
    assert read("one", form)[0] == "one"
    assert read("one", AnswerForm(keeps_stop=True, skips_special_tokens=False))[0] == "one</s>"


def test_end_token_is_told_where_that_is_asked_for():
    assert END not in read("one", AnswerForm(reports_tokens=True))[1]
    text, told, _ = read("one", AnswerForm(reports_tokens=True, reports_ends=True))
    assert (text, told[-1], len(told)) == ("one", END, 4)


def test_special_pieces_that_are_kept_are_part_of_the_text():
    piece = ByteTokenizer().encode("<|im_start|>", add_special_tokens=False)
    assert read("a<|im_start|>b", AnswerForm(kept_token_ids=frozenset(piece)))[0] == (
        "a<|im_start|>b"
    )
    assert read("a<|im_start|>b", AnswerForm())[0] == "ab"


@pytest.mark.parametrize("more", [{}, {"reports_token_ids": True}])
@pytest.mark.parametrize("num_together", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "num_thought"),
    [(" {}hmm{}yes", 3), ("yes{1}", 0), ("{}hm", 2), ("{}h<|im_end", 9), ("{}h世{}", 4)],
)
@pytest.mark.parametrize("marks", [("<|im_start|>", "<|im_end|>"), ("[THINK]", "[/THINK]")])
def test_tokens_of_thoughts_are_counted(text, marks, num_thought, num_together, more):
    """Marks are special pieces, or plain text."""
    text = text.format(*marks)
    tokenizer = ByteTokenizer()
    model = served_model(FakeEngine(says(tokenizer, "")), tokenizer)
    params = SamplingParams(max_tokens=100, eos_token_ids=frozenset({END}))
    form = AnswerForm(
        thought_marks=ThoughtMarks(*marks, is_open=False), kept_token_ids=frozenset({2, 3}), **more
    )
    reader = make_reader(0, PlannedChoice(Prompt([0]), params), form, model)
    ids = [*tokenizer.encode(text, add_special_tokens=False), END]
    outputs = [
        TokenOutput(0, token_id, None, FinishReason.STOP if token_id == END else None)
        for token_id in ids
    ]
    for begin in range(0, len(outputs), num_together):
        delta = reader.read(outputs[begin : begin + num_together])
    assert reader.num_thought == num_thought
    assert reader.num_tokens == len(ids)
    assert bool(delta is not None and delta.token_ids) is bool(more)
