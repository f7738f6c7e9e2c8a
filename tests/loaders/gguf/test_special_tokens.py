"""Ids of pieces that begin or end a text, in and beyond the vocabulary."""

import pytest
from structlog.testing import capture_logs

from loaders.gguf.special_tokens import special_token_id

LLAMA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ("<unk>", "<s>", "</s>", "▁a"),
}


def test_an_id_is_what_the_file_says():
    assert special_token_id({"tokenizer.ggml.eos_token_id": 3}, "eos", 4) == 3


@pytest.mark.parametrize("number", [4, 99_999, 2**31, 2**32 - 1, -1, "2", True])
def test_one_beyond_the_vocabulary_is_ignored_and_logged(number):
    with capture_logs() as logs:
        assert special_token_id({"tokenizer.ggml.padding_token_id": number}, "padding", 4) is None
    assert [log["event"] for log in logs] == ["special_token_ignored"]


def test_sentencepiece_files_that_name_none_have_llamas():
    found = [special_token_id(LLAMA, name, 4) for name in ("unknown", "bos", "eos", "padding")]
    assert found == [0, 1, 2, None]
    assert special_token_id({**LLAMA, "tokenizer.ggml.bos_token_id": 77}, "bos", 4) == 1


def test_other_pieces_in_their_place_are_no_special_ones():
    others = {**LLAMA, "tokenizer.ggml.tokens": ("a", "b", "c")}
    assert special_token_id(others, "bos", 3) is None
    assert special_token_id({**LLAMA, "tokenizer.ggml.model": "gpt2"}, "bos", 4) is None
    assert special_token_id(LLAMA, "eos", 2) is None
