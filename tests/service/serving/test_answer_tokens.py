"""Tokens are told with their place in the text, and not before it."""

from __future__ import annotations

from service.serving.answer_tokens import AnswerToken, AnswerTokens, prompt_tokens
from tests.service.fakes import ByteTokenizer


def places(tokens: list[AnswerToken]) -> list[tuple[int, int]]:
    return [(token.offset, token.end) for token in tokens]


def test_places_count_from_the_beginning_of_the_answers_text():
    tokens = AnswerTokens(start=10)
    tokens.add(5, None, 0, 3)
    tokens.add(6, None, 3, 4)
    assert places(tokens.take(13)) == [(10, 13)]
    assert places(tokens.take_rest()) == [(13, 14)]


def test_character_of_several_tokens_ends_with_its_last():
    tokens = AnswerTokens()
    for begin, end in ((0, 0), (0, 1), (1, 1)):
        tokens.add(5, None, begin, end)
    assert places(tokens.take(1)) == [(0, 0), (0, 1)]  # the third waits for what it is part of


def test_what_a_stop_string_cuts_off_is_counted():
    tokens = AnswerTokens()
    tokens.add(5, None, 0, 4)
    tokens.add(6, None, 4, 5)
    (token,) = tokens.take_until(3, lambda _: b"four")
    assert (token.end, token.num_cut) == (4, 1)


def test_prompts_tokens_lie_side_by_side():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("aé")
    found = prompt_tokens(tokenizer, ids, [None] * (len(ids) - 1), "aé")
    assert places(found) == [(0, 0), (0, 1), (1, 1), (1, 2)]
