"""How prompts are cut, and how much room is left behind them."""

from __future__ import annotations

import pytest

from service.errors import ContextLengthError
from service.serving.prompts import room_behind, truncate


@pytest.mark.parametrize(
    ("token_ids", "most", "kept"),
    [
        ([0, 5, 6, 7], 4, [0, 5, 6, 7]),
        ([0, 5, 6, 7], 3, [0, 6, 7]),
        ([0, 5, 6, 7], 2, [0, 7]),
        ([0, 5, 6, 7], 1, [7]),
        ([5, 6, 7], 2, [6, 7]),  # no BOS to keep
    ],
)
def test_the_end_is_kept_and_what_every_text_begins_with(tiny_tokenizer, token_ids, most, kept):
    assert list(truncate(token_ids, most, tiny_tokenizer)) == kept


def room(num_prompt_tokens: int, asked: int | None) -> int:
    return room_behind(
        num_prompt_tokens, asked, 100, prompt_param="prompt", length_param="n_predict"
    )


def test_what_is_left_of_the_context_is_told():
    assert (room(99, None), room(40, 60), room(99, 0)) == (1, 60, 1)


@pytest.mark.parametrize(("asked", "param"), [(None, "prompt"), (5, "prompt")])
def test_a_prompt_that_fills_the_context_is_refused_in_the_words_that_clients_know(asked, param):
    with pytest.raises(
        ContextLengthError, match=r"^This model.s maximum context length is 100 tok"
    ) as caught:
        room(100, asked)
    assert caught.value.param == param


def test_an_answer_that_does_not_fit_is_refused_by_the_name_it_was_asked_by():
    with pytest.raises(ContextLengthError, match="at most 60") as caught:
        room(40, 61)
    assert caught.value.param == "n_predict"
