"""Single tokens: their bytes make up the text, whatever the vocabulary."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from service.text.token_text import TokenTexts
from tests.service.fakes import ByteTokenizer

TEXTS = [
    "def reverse(s):\n    return s[::-1]\n",
    "  two spaces first, and two last  ",
    "Grüße, naïve café — “quotes”…",
    "日本語のテキストと漢字、한국어도. 𠜎𠜱 rare ones too",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 hand, 🇩🇪",
    "e\u0301 combining, \u200bzero width, nul \x00 end, <0x41> is text",
    "",
]
with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)


def encode(tokenizer, text) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def id_of(tokenizer, piece: str) -> int:
    token_id = tokenizer.backend_tokenizer.token_to_id(piece)
    assert token_id is not None
    return token_id


def has_space_marks(tokenizer) -> bool:
    return tokenizer.backend_tokenizer.token_to_id("<0x00>") is not None


def has_pieces(tokenizer, character: str) -> bool:
    """StarCoder and SmolLM2 lack some bytes, and leave out the characters that need them."""
    if has_space_marks(tokenizer):
        return True
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((letters, _),) = splitter.pre_tokenize_str(character)
    return all(tokenizer.backend_tokenizer.token_to_id(letter) is not None for letter in letters)


def assert_bytes_make_up(tokenizer, text: str) -> None:
    texts = TokenTexts(tokenizer)
    made = b"".join(texts.raw_bytes(token_id) for token_id in encode(tokenizer, text))
    if has_space_marks(tokenizer):  # perhaps a space more in front; "▁" is how it writes a space
        spaced = text.replace("▁", " ").encode()
        assert made in (spaced, b" " + spaced)
    else:
        assert made == text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_make_up_the_text(tokenizer, text):
    assert_bytes_make_up(tokenizer, text)


@given(text=st.text(max_size=40))
@with_vocabulary
def test_bytes_make_up_any_text(tokenizer, text):
    assert_bytes_make_up(tokenizer, "".join(each for each in text if has_pieces(tokenizer, each)))


@given(text=st.text(max_size=40))
@settings(deadline=None)
def test_bytes_make_up_any_text_of_single_bytes(text):
    assert_bytes_make_up(ByteTokenizer(), text)


@given(data=st.data())
@with_vocabulary
def test_a_text_is_what_its_bytes_say(tokenizer, data):
    token_id = data.draw(st.integers(0, len(tokenizer) - 1))
    texts = TokenTexts(tokenizer)
    assert texts.text(token_id) == texts.raw_bytes(token_id).decode(errors="replace")


@given(data=st.data())
@with_vocabulary
def test_a_token_is_found_by_its_bytes(tokenizer, data):
    token_id = data.draw(st.integers(0, len(tokenizer) - 1))
    texts = TokenTexts(tokenizer)
    raw = texts.raw_bytes(token_id)
    found = texts.ids_of(raw)
    assert all(texts.raw_bytes(each) == raw for each in found)
    if not (has_space_marks(tokenizer) and "▁" in tokenizer.convert_ids_to_tokens(token_id)[1:]):
        assert token_id in found


def test_a_leading_space_is_kept(llama_2, qwen2):
    assert TokenTexts(llama_2).text(id_of(llama_2, "▁answer")) == " answer"
    assert TokenTexts(llama_2).text(id_of(llama_2, "answer")) == "answer"
    assert TokenTexts(qwen2).text(id_of(qwen2, "Ġanswer")) == " answer"


def test_a_byte_of_a_character_has_its_byte_and_no_text_of_its_own(small, llama_2):
    assert TokenTexts(llama_2).raw_bytes(id_of(llama_2, "<0xE2>")) == b"\xe2"
    assert TokenTexts(llama_2).text(id_of(llama_2, "<0xE2>")) == "\ufffd"
    assert TokenTexts(llama_2).text(id_of(llama_2, "<0x0A>")) == "\n"
    assert TokenTexts(small).raw_bytes(0xE2) == b"\xe2"
    assert TokenTexts(small).text(0xE2) == "\ufffd"


def test_byte_pieces_are_text_to_a_tokenizer_that_has_none():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*letters, "<0x41>"])}
    tokenizer = fast(Tokenizer(models.BPE(vocabulary, [])), decoders.ByteLevel())
    assert TokenTexts(tokenizer).text(vocabulary["<0x41>"]) == "<0x41>"


def test_special_pieces_are_shown_as_they_are_written(tokenizer):
    texts = TokenTexts(tokenizer)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            assert texts.text(token_id) == token.content
            assert texts.raw_bytes(token_id) == token.content.encode()


def test_an_added_letter_is_that_letter_and_no_byte(deepseek_coder):
    texts = TokenTexts(deepseek_coder)
    assert texts.raw_bytes(id_of(deepseek_coder, "ü")) == "ü".encode()
    assert id_of(deepseek_coder, "ü") in texts.ids_of("ü".encode())
    assert texts.ids_of(b"\xfc") == ()


def test_a_byte_and_the_letter_of_it_are_two_tokens_of_one_text(llama_2):
    both = TokenTexts(llama_2).ids_of(b"a")
    assert both == (id_of(llama_2, "a"), id_of(llama_2, "<0x61>"))


def test_added_runs_of_space_marks_are_spaces():
    backend = Tokenizer(models.BPE({"▁": 0, "a": 1}, []))
    tokenizer = fast(backend, decoders.Metaspace())
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False)])
    assert TokenTexts(tokenizer).text(id_of(tokenizer, "▁▁")) == "  "


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        (decoders.Metaspace(), " ing"),
        (decoders.WordPiece(), " ▁ing"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]), "ing"),
        (decoders.Sequence([decoders.Replace("▁", "_"), decoders.Fuse()]), "_ing"),
        (None, " ▁ing"),
    ],
)
def test_every_decoder_has_its_way(decoder, text):
    """One that isn't known is asked, behind a text."""
    tokenizer = fast(Tokenizer(models.WordLevel({"a": 0, "▁ing": 1}, unk_token="a")), decoder)
    assert TokenTexts(tokenizer).text(1) == text


def test_ids_that_no_piece_belongs_to_have_neither_text_nor_bytes(tokenizer):
    texts = TokenTexts(tokenizer)
    for token_id in (len(tokenizer) + 1000, 2**32, 2**70, -1):
        assert (texts.text(token_id), texts.raw_bytes(token_id)) == ("", b"")
        assert token_id not in texts._pieces.raw_bytes


def test_what_was_found_is_kept_for_the_next_request(small):
    tokenizer = copy_of(small)
    assert TokenTexts(tokenizer).text(ord("a")) == "a"
    assert TokenTexts(tokenizer)._pieces.texts == {ord("a"): "a"}


def test_many_threads_read_what_one_reads(llama_2):
    ids = range(0, len(llama_2), 97)
    expected = [TokenTexts(llama_2).text(token_id) for token_id in ids]
    fresh = copy_of(llama_2)
    with ThreadPoolExecutor(8) as threads:
        runs = threads.map(lambda _: [TokenTexts(fresh).text(each) for each in ids], range(16))
        assert all(run == expected for run in runs)


def test_nothing_keeps_a_tokenizer_alive(small):
    tokenizer = copy_of(small)
    texts = TokenTexts(tokenizer)
    reference = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert reference() is None
    assert texts.text(ord("b")) == "b"


def fast(backend: Tokenizer, decoder) -> PreTrainedTokenizerFast:
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def copy_of(tokenizer) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=backend)
