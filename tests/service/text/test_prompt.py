"""Raw prompts: one BOS, special pieces parsed, the shared tokenizer left alone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.text.backend import decode_whole, leading_ids
from service.text.errors import InvalidPromptError, UnsupportedTokenizerError
from service.text.prompt import encode_prompt

with_vocabulary = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)


@given(text=st.text(max_size=30))
@with_vocabulary
def test_a_prompt_is_encoded_as_the_tokenizer_does(tokenizer, text):
    expected = tokenizer(text).input_ids
    assert encode_prompt(tokenizer, text) == expected


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_typed_bos_is_the_bos(tokenizer, times):
    leading = leading_ids(tokenizer.backend_tokenizer)
    if not leading:
        pytest.skip("this tokenizer adds no BOS")
    for text in ("Hello world", " Hello", "", "[INST] Hi [/INST]"):
        assert encode_prompt(tokenizer, tokenizer.bos_token * times + text) == (
            encode_prompt(tokenizer, text)
        )
    ids = encode_prompt(tokenizer, tokenizer.bos_token * times + "Hello")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_adds_no_bos_gets_none(qwen2, small_without_bos):
    assert encode_prompt(qwen2, "Hello") == [9707]
    assert encode_prompt(small_without_bos, "Hi") == [*b"Hi"]


def test_a_bos_typed_later_stays(small):
    bos = small.bos_token_id
    assert encode_prompt(small, "a<s>b") == [bos, ord("a"), bos, ord("b")]


def test_special_pieces_in_a_prompt_are_parsed(codellama_70b):
    """As in the card's own example."""
    ids = encode_prompt(codellama_70b, "Source: user\n\n hi <step> Source: assistant")
    assert codellama_70b.convert_tokens_to_ids("<step>") in ids


@given(text=st.text(max_size=30))
@with_vocabulary
def test_where_nothing_is_to_be_added_a_prompt_is_encoded_as_it_stands(tokenizer, text):
    expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert encode_prompt(tokenizer, text, add_special_tokens=False) == expected


def test_where_nothing_is_to_be_added_a_typed_bos_stays_as_often_as_it_was_typed(small):
    bos = small.bos_token_id
    assert encode_prompt(small, "Hi", add_special_tokens=False) == [*b"Hi"]
    assert encode_prompt(small, "<s><s>Hi", add_special_tokens=False) == [bos, bos, *b"Hi"]


@given(text=st.text(max_size=30))
@with_vocabulary
def test_text_without_special_pieces_gets_the_same_ids_parsed_or_not(tokenizer, text):
    assert encode_prompt(tokenizer, text, parse_special=False) == encode_prompt(tokenizer, text)


@pytest.mark.parametrize("adds", [True, False])
def test_special_pieces_are_text_where_they_are_not_to_be_parsed(tokenizer, adds):
    added = tokenizer.added_tokens_decoder
    special = [token.content for token in added.values() if token.special]
    text = "a".join(["", *special[:20], ""])
    ids = encode_prompt(tokenizer, text, add_special_tokens=adds, parse_special=False)
    leading = leading_ids(tokenizer.backend_tokenizer) if adds else []
    assert ids[: len(leading)] == leading
    typed = ids[len(leading) :]
    assert not {token_id for token_id, token in added.items() if token.special} & set(typed)
    # "▁" in CodeLlama's pieces is how SentencePiece writes a space.
    shown = tokenizer.backend_tokenizer.decode(typed, skip_special_tokens=False)
    assert shown.replace("▁", " ") == text.replace("▁", " ")


def test_a_bos_typed_as_text_is_no_bos(small):
    assert encode_prompt(small, "<s>a", parse_special=False) == [small.bos_token_id, *b"<s>a"]


def test_an_empty_prompt_is_bos_alone(small, small_without_bos):
    assert encode_prompt(small, "") == [small.bos_token_id]
    assert encode_prompt(small_without_bos, "") == []


def test_a_lone_surrogate_is_refused_with_its_place(small):
    with pytest.raises(InvalidPromptError, match="position 2"):
        encode_prompt(small, "ab\ud800")


def test_a_tokenizer_that_cuts_texts_is_refused(small):
    backend = small.backend_tokenizer
    backend.enable_truncation(4)
    try:
        with pytest.raises(UnsupportedTokenizerError, match="no_truncation"):
            encode_prompt(small, "longer than four")
    finally:
        backend.no_truncation()


def test_a_tokenizer_without_a_backend_is_refused():
    with pytest.raises(UnsupportedTokenizerError, match=r"tokenizer\.json"):
        encode_prompt(object(), "text")


def test_several_threads_get_what_one_gets(tokenizer):
    texts = [f"text {number} <s> Grüße 🙂 " * (number % 7 + 1) for number in range(200)]
    expected = [encode_prompt(tokenizer, text) for text in texts]
    before = tokenizer.backend_tokenizer.to_str()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda text: encode_prompt(tokenizer, text), texts)) == expected
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("unit", ["a", "<s>", "漢 "])
def test_time_grows_with_the_length_only(tokenizer, unit):
    """Ten times the text may take thirty times the time, not a hundred."""
    short, long = unit * 2_000, unit * 20_000
    encode_prompt(tokenizer, short)
    times = []
    for text in (short, long):
        start = time.process_time()
        encode_prompt(tokenizer, text)
        times.append(time.process_time() - start)
    assert times[1] < 30 * max(times[0], 0.01)


def test_a_prompt_is_shown_with_its_special_pieces(tokenizer):
    ids = encode_prompt(tokenizer, "Hello world")
    bos = "".join(tokenizer.convert_ids_to_tokens(leading_ids(tokenizer.backend_tokenizer)))
    shown = decode_whole(tokenizer.backend_tokenizer, ids)
    assert shown.startswith(bos)
    assert shown.removeprefix(bos).strip() == "Hello world"
