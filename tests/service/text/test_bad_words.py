"""Bad words: no way around them that is made of whole tokens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.sampling_params import SamplingParams
from service.text.bad_words import (
    MAX_SPLITTINGS,
    MAX_WORD_BYTES,
    MAX_WORDS,
    bad_word_ids,
)
from service.text.errors import InvalidBadWordError, InvalidPromptError, InvalidTextError
from service.text.token_text import TokenTexts
from tests.service.fakes import ByteTokenizer

with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None
)
words = st.text(st.characters(exclude_categories=["Z", "C", "M"]), min_size=1, max_size=12)


def encode(tokenizer, text) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def ids_of(tokenizer, *pieces: str) -> tuple[int, ...]:
    return tuple(tokenizer.backend_tokenizer.token_to_id(piece) for piece in pieces)


def is_banned(ids, banned) -> bool:
    runs = {tuple(ids[i:j]) for i, j in itertools.combinations(range(len(ids) + 1), 2)}
    return not runs.isdisjoint(banned)


@given(word=words)
@with_vocabulary
def test_a_word_is_banned_wherever_a_tokenizer_writes_it(tokenizer, word):
    texts = TokenTexts(tokenizer)
    written = b"".join(map(texts.raw_bytes, encode(tokenizer, word)))
    assume(written.lstrip() == word.encode())  # SmolLM2 and StarCoder lack some characters
    banned = bad_word_ids(tokenizer, [word])
    for text in (word, f" {word}", f"\n{word}", f"so {word} it", f"so\n{word} it"):
        assert is_banned(encode(tokenizer, text), banned), text


def parts_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of "foo", and some that hold more than it."""
    pieces = ["f", "o", "d", "Ġ", "fo", "oo", "foo", "Ġf", "Ġfo", "Ġfoo", "food", "df", "dfoo"]
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_no_run_of_whole_tokens_is_the_word_however_it_is_split():
    """Tried with every sequence of up to four tokens."""
    tokenizer = parts_tokenizer()
    texts = TokenTexts(tokenizer)
    banned = bad_word_ids(tokenizer, ["foo"])
    for ids in itertools.product(range(13), repeat=4):
        raw = [texts.raw_bytes(token_id) for token_id in ids]
        runs = itertools.combinations(range(len(ids) + 1), 2)
        holds = any(b"".join(raw[i:j]) in (b"foo", b" foo") for i, j in runs)
        assert is_banned(ids, banned) == holds, raw


def test_tokens_that_hold_more_than_the_word_are_left_alone():
    tokenizer = parts_tokenizer()
    banned = bad_word_ids(tokenizer, ["foo"])
    assert not is_banned(ids_of(tokenizer, "food"), banned)
    assert not is_banned(ids_of(tokenizer, "dfoo"), banned)


def test_nothing_is_listed_that_holds_another_one_listed():
    tokenizer = parts_tokenizer()
    banned = bad_word_ids(tokenizer, ["foo"])
    assert set(banned) == {
        *(ids_of(tokenizer, *way) for way in [["foo"], ["f", "oo"], ["fo", "o"], ["f", "o", "o"]]),
        *(ids_of(tokenizer, *way) for way in [["Ġfoo"], ["Ġfo", "o"], ["Ġf", "oo"]]),
        ids_of(tokenizer, "Ġf", "o", "o"),
    }
    assert len(banned) == len(set(banned))


def test_a_model_cannot_spell_a_word_in_other_pieces_of_a_real_vocabulary(llama_2, qwen2):
    banned = bad_word_ids(llama_2, ["secret"])
    assert ids_of(llama_2, "▁secret") in banned
    for way in (["▁sec", "ret"], ["▁se", "cret"], ["sec", "ret"], ["s", "ecret"]):
        known = ids_of(llama_2, *way)
        assert None in known or is_banned(known, banned)
    banned = bad_word_ids(llama_2, ["sec"])
    assert is_banned(ids_of(llama_2, "▁s", "<0x65>", "c"), banned)
    banned = bad_word_ids(qwen2, ["secret"])
    assert is_banned(ids_of(qwen2, "Ġsecret"), banned)
    assert is_banned(ids_of(qwen2, "sec", "ret"), banned)


def test_a_word_with_a_space_before_it_is_banned_behind_spaces_only(llama_2, qwen2):
    assert ids_of(qwen2, "Ġanswer") in bad_word_ids(qwen2, [" answer"])
    assert not is_banned(ids_of(qwen2, "answer"), bad_word_ids(qwen2, [" answer"]))
    assert ids_of(llama_2, "▁answer") in bad_word_ids(llama_2, [" answer"])
    assert not is_banned(ids_of(llama_2, "answer"), bad_word_ids(llama_2, [" answer"]))


def test_a_word_that_is_a_control_piece_bans_the_piece_and_the_text(tokenizer):
    eos = tokenizer.eos_token
    banned = bad_word_ids(tokenizer, [eos])
    assert (tokenizer.eos_token_id,) in banned
    assert len(banned) > 1


def test_a_control_piece_within_a_word_is_text(small):
    banned = bad_word_ids(small, ["a</s>"])
    assert tuple(b"a</s>") in banned
    assert not any(small.eos_token_id in ids for ids in banned)


def test_no_byte_piece_is_taken_for_the_text_of_its_name(llama_2):
    (byte,) = ids_of(llama_2, "<0x41>")
    assert not any(byte in ids for ids in bad_word_ids(llama_2, ["<0x41>"]))


def test_words_that_a_vocabulary_cannot_write_ban_nothing_else(smollm2):
    assert bad_word_ids(smollm2, ["\U00040000"]) == ()


def test_many_long_words_stay_within_bounds(qwen2):
    many = [f"word{number}" for number in range(MAX_WORDS)]
    banned = bad_word_ids(qwen2, many)
    # At most two encodings of each of two texts, and the splittings.
    assert len(banned) <= 4 * MAX_WORDS + MAX_SPLITTINGS
    assert all(is_banned(encode(qwen2, word), banned) for word in many)
    longest = "ab" * (MAX_WORD_BYTES // 2)
    assert len(bad_word_ids(qwen2, [longest])) <= 4


def test_words_are_taken_once(llama_2):
    assert bad_word_ids(llama_2, ["a", "a", "a"]) == bad_word_ids(llama_2, ["a"])


def test_the_engine_takes_them_as_they_come():
    banned = bad_word_ids(ByteTokenizer(), ["foo", "</s>"])
    assert SamplingParams(max_tokens=1, bad_words=banned).bad_words == banned
    assert bad_word_ids(ByteTokenizer(), []) == ()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["a", ""], r"bad_words\[1\] is empty"),
        (["é" * 129], "258 bytes; give at most 256"),
        (["a"] * 257, "257 words; give at most 256"),
    ],
)
def test_words_that_cannot_be_banned_are_refused_in_words(small, bad, message):
    with pytest.raises(InvalidBadWordError, match=message) as raised:
        bad_word_ids(small, bad)
    assert isinstance(raised.value, InvalidTextError)


def test_a_lone_surrogate_is_refused(small):
    with pytest.raises(InvalidPromptError, match="position 1"):
        bad_word_ids(small, ["a\ud800"])
