"""What a client reads: whole characters, no part of a stop string, no end piece."""

from __future__ import annotations

from service.text.text_stream import TextStream


def stream(tokenizer, **options) -> TextStream:
    return TextStream(tokenizer, [*b"prompt"], **options)


def test_text_comes_as_it_is_complete(small):
    text = stream(small)
    assert [text.push(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert text.flush() == ""
    assert not text.stopped


def test_a_stop_string_across_ids_ends_the_text_before_it(small):
    text = stream(small, stop_strings=["é!"])
    assert [text.push(byte) for byte in "aé!b".encode()] == ["a", "", "", "", ""]
    assert text.stopped
    assert text.stop_string == "é!"
    assert text.flush() == ""


def test_a_begun_stop_string_comes_out_at_the_end(small):
    text = stream(small, stop_strings=["</s>"])
    assert [text.push(byte) for byte in b"a</"] == ["a", "", ""]
    assert text.flush() == "</"
    assert not text.stopped


def test_what_the_detokenizer_held_back_may_complete_a_stop_string(small):
    text = stream(small, stop_strings=["a\ufffd"])
    assert [text.push(byte) for byte in "a€".encode()[:-1]] == ["", "", ""]
    assert text.flush() == ""
    assert text.stopped


def test_the_first_ids_are_not_searched_for_stop_strings(small):
    text = stream(small, stop_strings=["ab"], min_tokens=3)
    assert [text.push(byte) for byte in b"abaacab"] == ["a", "b", "a", "", "ac", "", ""]
    assert text.stopped
    assert text.push(ord("c")) == ""


def test_a_text_that_ends_among_those_is_not_searched_either(small):
    text = stream(small, stop_strings=["\ufffd"], min_tokens=3)
    assert [text.push(byte) for byte in "€".encode()[:-1]] == ["", ""]
    assert text.flush() == "\ufffd"
    assert not text.stopped


def test_an_end_piece_is_no_text_even_if_it_is_not_marked_special(small):
    end = small.convert_tokens_to_ids("<|EOT|>")
    text = stream(small, stop_token_ids={end})
    assert text.push(ord("a")) + text.push(end) + text.flush() == "a"
    assert stream(small).push(end) == "<|EOT|>"


def test_the_prompts_end_decides_about_the_first_space(llama_2):
    prompt = llama_2.backend_tokenizer.encode("[/INST]").ids
    (word,) = llama_2.backend_tokenizer.encode("answer", add_special_tokens=False).ids
    assert TextStream(llama_2, prompt).push(word) == " answer"
    assert TextStream(llama_2, [1]).push(word) == "answer"


def test_special_pieces_that_are_kept_are_text_and_others_are_not(small):
    start, end = (small.convert_tokens_to_ids(piece) for piece in ("<|im_start|>", "<|im_end|>"))
    text = stream(small, kept_token_ids=frozenset({start}))
    pushed = [text.push(token_id) for token_id in (*b"a", start, end, *b"b")]
    assert pushed == ["a", "<|im_start|>", "", "b"]
    plain = stream(small)
    assert [plain.push(token_id) for token_id in (*b"a", start, end, *b"b")] == ["a", "", "", "b"]


def test_half_a_character_before_a_piece_that_is_kept_comes_before_it(small):
    start = small.convert_tokens_to_ids("<|im_start|>")
    text = stream(small, kept_token_ids=frozenset({start}))
    assert [text.push(token_id) for token_id in (0xE2, start)] == ["", "\ufffd<|im_start|>"]
    assert text.num_chars == 1 + len("<|im_start|>")
