"""What ends an answer is no text of it, whether or not it may end it."""

from __future__ import annotations

import pytest

from engine.outputs import TokenOutput
from engine.sampling_params import SamplingParams
from service.serving.choice_reader import make_reader
from service.serving.generation_request import AnswerForm, PlannedChoice
from service.serving.prompts import Prompt
from tests.service.fakes import ByteTokenizer, FakeEngine, says, served_model


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_end_piece_that_is_not_marked_special_shows_nowhere(ignore_eos):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("ab", add_special_tokens=False)
    params = SamplingParams(max_tokens=9, eos_token_ids=frozenset(ids[1:]), ignore_eos=ignore_eos)
    model = served_model(FakeEngine(says(tokenizer, "")), tokenizer)
    reader = make_reader(0, PlannedChoice(Prompt([0]), params), AnswerForm(), model)
    delta = reader.read([TokenOutput(0, token_id, None, None) for token_id in ids])
    assert delta is not None
    assert delta.text == "a"
