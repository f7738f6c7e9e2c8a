"""Tokens beside a text: told when their text is, and no more of them than is text."""

from __future__ import annotations

import pytest

from engine.outputs import TokenLogprobs
from service.serving.answer_tokens import AnswerTokens, prompt_tokens
from service.text.token_text import without_end

KNOWN = TokenLogprobs(-1.0, ())


def tokens_of(*lengths: int, start: int = 0) -> AnswerTokens:
    """Tokens 0, 1, 2, … that add so many characters each."""
    tokens, end = AnswerTokens(start), 0
    for token_id, length in enumerate(lengths):
        tokens.add(token_id, KNOWN, end, end + length)
        end += length
    return tokens


def ids(tokens) -> list[int]:
    return [token.token_id for token in tokens]


def test_a_token_is_told_once_all_its_text_is_sent():
    tokens = tokens_of(3, 2, 4)
    assert ids(tokens.take(2)) == []
    assert ids(tokens.take(5)) == [0, 1]
    assert ids(tokens.take(8)) == []
    assert ids(tokens.take(9)) == [2]
    assert ids(tokens.take_rest()) == []


def test_parts_of_a_character_wait_for_the_last_of_them_and_begin_where_it_does():
    tokens = tokens_of(2, 0, 0, 1, 3)
    assert ids(tokens.take(2)) == [0]
    taken = tokens.take(3)
    assert ids(taken) == [1, 2, 3]
    assert [token.offset for token in taken] == [2, 2, 2]


def test_what_has_no_text_at_the_end_is_told_with_the_rest():
    tokens = tokens_of(2, 0)
    assert ids(tokens.take(2)) == [0]
    assert ids(tokens.take_rest()) == [1]


@pytest.mark.parametrize(
    ("num_sent", "told", "num_cut"),
    [(0, [], []), (2, [0], [1]), (3, [0], [0]), (4, [0, 1], [0, 1]), (9, [0, 1, 2], [0, 0, 0])],
)
def test_where_the_text_is_cut_tokens_are(num_sent, told, num_cut):
    taken = tokens_of(3, 2, 4).take_until(num_sent, [b"abc", b"de", b"fghi"].__getitem__)
    assert ids(taken) == told
    assert [token.num_cut for token in taken] == num_cut


def test_a_character_that_is_cut_off_is_told_by_none_of_its_tokens():
    """Of "a 🙂" the space comes with three bytes of the character, its last by itself."""
    tokens = AnswerTokens()
    for token_id, (begin, end) in enumerate([(0, 1), (1, 1), (1, 3)]):
        tokens.add(token_id, KNOWN, begin, end)
    raw = [b"a", b" \xf0\x9f\x99", b"\x82"]
    taken = tokens.take_until(2, raw.__getitem__)
    assert [(token.token_id, token.num_cut) for token in taken] == [(0, 0), (1, 1)]
    assert without_end(raw[1], 1) == b" "


def test_offsets_count_from_the_beginning_of_a_text_that_has_begun_already():
    taken = tokens_of(3, 2, start=10).take(15)
    assert [token.offset for token in taken] == [10, 13]


def test_a_prompts_tokens_are_placed_in_its_text(tiny_tokenizer):
    text = "ab<|im_start|>ü"
    token_ids = tiny_tokenizer.encode(text)
    placed = prompt_tokens(tiny_tokenizer, token_ids, [KNOWN] * (len(token_ids) - 1), text)
    assert placed[0].logprobs is None
    assert {token.logprobs for token in placed[1:]} == {KNOWN}
    mark = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    (shown,) = [token for token in placed if token.token_id == mark]
    assert (placed[0].offset, placed[1].offset, shown.offset) == (0, 0, 2)
    assert placed[-1].offset == len(text) - 1


def test_special_pieces_that_a_prompts_text_does_not_show_take_no_room(tiny_tokenizer):
    token_ids = [0, *tiny_tokenizer.encode("ab", add_special_tokens=False), 3]
    placed = prompt_tokens(tiny_tokenizer, token_ids, [KNOWN] * (len(token_ids) - 1), "ab")
    assert (placed[0].offset, placed[1].offset, placed[-1].offset) == (0, 0, 2)
