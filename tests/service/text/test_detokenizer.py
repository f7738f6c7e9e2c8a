"""Detokenising: the pieces make up the whole, and no character comes in halves."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream

from service.text.detokenizer import Detokenizer

TEXTS = [
    "def reverse(s):\n    return s[::-1]\n",
    "  two spaces first, and two last  ",
    "Grüße, naïve café — “quotes”…",
    "日本語のテキストと漢字、한국어도. 𠜎𠜱 rare ones too",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 hand, 🇩🇪",
    "e\u0301 combining, \u200bzero width, \ufeff mark, nul \x00 end",
    "\ufffd meant by the model \ufffd\ufffd",
    "مرحبا שלום हिन्दी ไทย",
    "",
]
# The vocabularies are shared between examples on purpose: nothing here may change them.
with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)


def pieces_of(tokenizer, ids, prompt=(), **options) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, **options)
    return [detokenizer.push(token_id) for token_id in ids] + [detokenizer.flush()]


def text_behind(tokenizer, prompt, ids) -> str:
    """The full decode of the generated ids in the context of the prompt."""
    return full_decode(tokenizer, [*prompt, *ids])[len(full_decode(tokenizer, prompt)) :]


def full_decode(tokenizer, ids) -> str:
    """Decode all at once, added letters as themselves: the decoder would make bytes of them."""
    backend, letters = tokenizer.backend_tokenizer, added_letters(tokenizer)
    text, start = "", 0
    for position, token_id in enumerate(ids):
        if token_id in letters:
            text += backend.decode(ids[start:position]) + letters[token_id]
            start = position + 1
    return text + backend.decode(ids[start:])


def added_letters(tokenizer) -> dict[int, str]:
    """DeepSeek-Coder has 13 of them, "ü" among them."""
    added = tokenizer.added_tokens_encoder
    return {added[piece]: piece for piece in added if len(piece) == 1 and not piece.isascii()}


def encode(tokenizer, text) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def has_byte_fallback(tokenizer) -> bool:
    return tokenizer.backend_tokenizer.token_to_id("<0x00>") is not None


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_the_text_behind_a_prompt(tokenizer, text):
    ids = encode(tokenizer, text)
    for prompt in ([], encode(tokenizer, "Hello"), encode(tokenizer, "Hello\n"), ids):
        pieces = pieces_of(tokenizer, ids, prompt)
        assert "".join(pieces) == text_behind(tokenizer, prompt, ids)
        if "\ufffd" not in text:
            assert "\ufffd" not in "".join(pieces)


@given(text=st.text(max_size=40))
@with_vocabulary
def test_any_text_comes_out_as_it_went_in(tokenizer, text):
    prompt = encode(tokenizer, "Hello")
    ids = encode(tokenizer, text)
    assert "".join(pieces_of(tokenizer, ids, prompt)) == text_behind(tokenizer, prompt, ids)


@given(data=st.data())
@with_vocabulary
def test_random_ids_give_what_a_full_decode_gives(tokenizer, data):
    if has_byte_fallback(tokenizer):
        pytest.skip("broken runs differ on purpose; see the tests of byte pieces")
    some_id = st.integers(0, len(tokenizer) + 5)
    prompt = data.draw(st.lists(some_id, max_size=6))
    ids = data.draw(st.lists(some_id, max_size=30))
    if full_decode(tokenizer, prompt).endswith("\ufffd"):
        prompt = []
    assert "".join(pieces_of(tokenizer, ids, prompt)) == text_behind(tokenizer, prompt, ids)


byte_names = ["e2", "82", "ac", "f0", "9f", "98", "80", "c3", "a9", "ff", "61", "20"]
some_bytes = st.lists(st.sampled_from(byte_names), max_size=20)


@given(hex_bytes=some_bytes)
@with_vocabulary
def test_single_bytes_however_broken_give_what_a_full_decode_gives(small, hex_bytes):
    ids = list(bytes.fromhex("".join(hex_bytes)))
    assert "".join(pieces_of(small, ids)) == small.backend_tokenizer.decode(ids)


@given(ids=st.lists(st.sampled_from([0xE2, 0x82, 0xAC, 0x61, 256, 257, 900]), max_size=30))
@with_vocabulary
def test_ids_across_two_characters_give_what_a_full_decode_gives(straddling, ids):
    assert "".join(pieces_of(straddling, ids)) == straddling.backend_tokenizer.decode(ids)


def test_an_id_across_two_characters_does_not_hold_the_text_back_for_ever(straddling):
    detokenizer = Detokenizer(straddling)
    assert [detokenizer.push(0xE2)] + [detokenizer.push(256) for _ in range(5)] == [
        *("", "", "", "€€€", "€", "€")
    ]
    assert detokenizer.push(0x82) == ""
    assert detokenizer.push(0xAC) == "€"


def test_time_is_linear_for_ids_that_never_make_a_character(straddling):
    """Continuation bytes, ids across characters, special pieces: none is kept for long."""
    for token_id in (0x82, 256, straddling.eos_token_id):
        detokenizer = Detokenizer(straddling)
        start = time.process_time()
        for _ in range(5000):
            detokenizer.push(token_id)
        # 0.1 s on one core; DecodeStream alone takes 1 to 2 s, and four times that for twice
        # as many (2026-11).
        assert time.process_time() - start < 5


def byte_pieces(tokenizer, data: bytes) -> list[int]:
    return [tokenizer.backend_tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]


def test_the_stream_underneath_raises_where_a_run_of_bytes_breaks(llama_2):
    """Why a fresh stream is taken for each piece of text; should it pass, the care can go."""
    backend = llama_2.backend_tokenizer
    stream = DecodeStream(skip_special_tokens=True)
    ids = [*encode(llama_2, "a"), *byte_pieces(llama_2, b"\xc3\xa9\xff"), *encode(llama_2, "b")]
    for token_id in ids[:-1]:
        stream.step(backend, token_id)
    with pytest.raises(Exception, match="Invalid prefix"):
        stream.step(backend, ids[-1])
    assert "".join(pieces_of(llama_2, ids)) == "aé\ufffd b"


@given(hex_runs=st.lists(some_bytes, max_size=5))
@with_vocabulary
def test_broken_runs_of_byte_pieces_lose_nothing_around_them(llama_2, hex_runs):
    """Whole characters before a break stay; what is broken becomes U+FFFD, at most one a byte."""
    word = encode(llama_2, "|")
    runs = [bytes.fromhex("".join(run)) for run in hex_runs]
    ids = list(word)
    for run in runs:
        ids += [*byte_pieces(llama_2, run.replace(b"|", b"")), *word]
    text = "".join(pieces_of(llama_2, ids, encode(llama_2, "a")))
    shown = text.split(" |")
    assert shown[0] == shown[-1] == ""
    for run, part in zip(runs, shown[1:-1], strict=True):
        if part_is_whole(run):
            assert part == run.decode()
        assert part.count("\ufffd") <= len(run)
        assert set(part) <= set(run.decode(errors="replace")) | {"\ufffd"}
        assert part.startswith(whole_beginning(run))


def part_is_whole(run: bytes) -> bool:
    return "\ufffd" not in run.decode(errors="replace")


def whole_beginning(run: bytes) -> str:
    return run.decode(errors="replace").partition("\ufffd")[0]


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦", "𠜎", "日本語"])
def test_a_character_comes_with_its_last_byte(llama_2, text):
    detokenizer = Detokenizer(llama_2, encode(llama_2, "a"))
    for character in text:
        *first, last = byte_pieces(llama_2, character.encode())
        assert [detokenizer.push(token_id) for token_id in first] == [""] * len(first)
        assert detokenizer.push(last) == character


def test_the_first_word_keeps_its_space_behind_text_only(llama_2):
    word = encode(llama_2, "answer")  # its first piece is "▁answer"
    assert "".join(pieces_of(llama_2, word, encode(llama_2, "[/INST]"))) == " answer"
    assert "".join(pieces_of(llama_2, word, [llama_2.bos_token_id])) == "answer"
    assert "".join(pieces_of(llama_2, word)) == "answer"


def test_a_character_that_the_prompt_began_comes_whole(small, llama_2):
    euro = "€".encode()
    assert pieces_of(small, [euro[2]], [*b"a", *euro[:2]])[0] == "€"
    prompt = [*encode(llama_2, "a"), *byte_pieces(llama_2, euro[:2])]
    assert pieces_of(llama_2, byte_pieces(llama_2, euro[2:]), prompt)[0] == "€"


def test_what_the_prompt_left_broken_is_not_said_again(small):
    assert "".join(pieces_of(small, [*b"b"], [*b"a\xe2\x82"])) == "b"


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character(tokenizer):
    ids = encode(tokenizer, "x𠜎")[:-1]
    prompt = encode(tokenizer, "a")
    text = "".join(pieces_of(tokenizer, ids, prompt))
    assert text == text_behind(tokenizer, prompt, ids)
    assert text.endswith("\ufffd")


def test_special_pieces_are_left_out_unless_asked_for(tokenizer):
    ids = [*encode(tokenizer, "ab"), tokenizer.eos_token_id, *encode(tokenizer, "cd")]
    prompt = encode(tokenizer, "a")
    assert tokenizer.eos_token not in "".join(pieces_of(tokenizer, ids, prompt))
    shown = "".join(pieces_of(tokenizer, ids, prompt, skip_special_tokens=False))
    assert tokenizer.eos_token in shown


def test_ids_past_the_vocabulary_are_no_text(tokenizer):
    """Weights are often padded, so a model can pick an id that no piece belongs to."""
    assert pieces_of(tokenizer, [len(tokenizer) + 1000] * 9) == [""] * 10
