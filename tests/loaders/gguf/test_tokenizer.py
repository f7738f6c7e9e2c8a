"""Tokenizers rebuilt from GGUF metadata, on real vocabularies where they are at hand."""

import unicodedata
from functools import cache
from pathlib import Path

import pytest

from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.errors import CheckpointError
from loaders.gguf.files import open_files
from loaders.gguf.tokenizer import make_tokenizer
from tests.gguf_writer import tokenizer_metadata
from tests.models import tiny_tokenizer

VOCABULARIES = Path(__file__).parents[3].parent / "shared" / "data"
CONFIG = {"max_position_embeddings": 4096}
TEXTS = (
    "Hello world",
    "  two before,   three between and after   ",
    "def fib(n):\n\tif n < 2:\n\t\treturn n\n\n\n    return fib(n-1) + fib(n-2)  # O(2^n)\r\n",
    "x = {'a': [1, 22, 333], \"b\": 3.14159e-10}; y=x['a'][0]!=x\n",
    "In 2024, 1234567 people; don't we'll IT'S",
    "日本語の文章と中文，还有한국어 — ½ × ² é e\u0301",
    "🎉👩‍👩‍👧 emoji\u200bzero ¿¡",
    "<b>tags</b> [INST] @#$%^&*()_+",
)
CODELLAMA_70B = (
    *("▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT"),
    *("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    *("▁<EOT>" * times for times in range(2, 6)),
    "<step>",
)


def vocabulary(name):
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"needs the vocabulary {path.name}, which is not beside the checkout")
    return dict(open_files(path).metadata)


@cache
def tokenizer_of(name):
    return make_tokenizer(vocabulary(name), CONFIG)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def reread(tokenizer, folder):
    """As the API's process reads what was written."""
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", ["llama-spm", "deepseek-coder", "qwen2", "starcoder"])
def test_any_text_comes_back_from_its_ids(name, tmp_path):
    made = tokenizer_of(name)
    written = reread(made, tmp_path)
    for text in TEXTS:
        wanted = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        assert written.decode(ids(written, text)) == wanted
        assert ids(written, text) == ids(made, text)


# What the models' own tokenizers give.
KNOWN = {
    "llama-spm": {
        "Hello world": [15043, 3186],
        "X</s> Y": [1060, 2, 29871, 612],
        "a</s>b": [263, 2, 289],
        "a</s>  b": [263, 2, 259, 289],
        " ghi": [29871, 330, 2918],
        "日本 🎉": [29871, 30325, 30346, 29871, 243, 162, 145, 140],
        "12": [29871, 29896, 29906],
    },
    "qwen2": {"Hello world": [9707, 1879], "123": [16, 17, 18], "<|im_end|>": [151645]},
    "deepseek-coder": {"Hello world": [17535, 1835], "+1 2": [10, 16, 207, 17]},
    "starcoder": {"Hello world": [8302, 5810], "<fim_prefix>": [1], "12": [54, 55]},
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_texts_have_their_known_ids(name):
    tokenizer = tokenizer_of(name)
    for text, expected in KNOWN[name].items():
        assert ids(tokenizer, text) == expected, text


@pytest.mark.parametrize(
    ("name", "leading"),
    [("llama-spm", [1]), ("deepseek-coder", [32013]), ("qwen2", []), ("starcoder", [])],
)
def test_a_text_begins_as_the_file_says(name, leading):
    tokenizer = tokenizer_of(name)
    assert tokenizer("x")["input_ids"][:-1] == leading


def test_fillers_of_a_vocabulary_are_text_where_they_are_typed():
    tokenizer = tokenizer_of("qwen2")
    assert 151646 not in ids(tokenizer, "[PAD151646]")
    assert len(ids(tokenizer, "[PAD151646]")) > 1


@pytest.mark.parametrize("kind", [3, 4])
def test_a_dialogue_of_codellama_70b_has_the_ids_that_its_own_tokenizer_gives(tmp_path, kind):
    """Its extra pieces are control pieces in some files, user-defined ones in others."""
    metadata = vocabulary("llama-spm")
    count = len(CODELLAMA_70B)
    metadata["tokenizer.ggml.tokens"] += CODELLAMA_70B
    metadata["tokenizer.ggml.scores"] += (-10_000.0,) * count
    metadata["tokenizer.ggml.token_type"] += (kind,) * count
    tokenizer = reread(make_tokenizer(metadata, CONFIG), tmp_path)
    text = (
        "<s>Source: system\n\n System prompt <step> Source: user\n\n First user query <step>"
        " Source: assistant\n\n Model response to first query <step> Source: user\n\n"
        " Second user query <step> Source: assistant\nDestination: user\n\n "
    )
    expected = (
        "1 7562 29901 1788 13 13 2184 9508 32015 7562 29901 1404 13 13 3824 1404 2346 32015 7562"
        " 29901 20255 13 13 8125 2933 304 937 2346 32015 7562 29901 1404 13 13 6440 1404 2346"
        " 32015 7562 29901 20255 13 14994 3381 29901 1404 13 13 29871"
    )
    assert ids(tokenizer, text) == [int(number) for number in expected.split()]
    assert tokenizer.decode([32015], skip_special_tokens=True) == ""


def test_words_are_cut_by_the_architectures_habit_where_an_old_file_does_not_say():
    metadata = vocabulary("starcoder")
    del metadata["tokenizer.ggml.pre"]
    unnamed, named = make_tokenizer(metadata, CONFIG), tokenizer_of("starcoder")
    for text in TEXTS:
        assert ids(unnamed, text) == ids(named, text)


@pytest.fixture
def small():
    return tokenizer_metadata(tiny_tokenizer())


def test_a_byte_level_tokenizer_is_rebuilt_whole(small, tmp_path):
    original = tiny_tokenizer()
    made = reread(make_tokenizer(small, CONFIG), tmp_path)
    for text in TEXTS:
        assert made(text)["input_ids"] == original(text)["input_ids"]
    assert made.chat_template == original.chat_template
    assert made.special_tokens_map["eos_token"] == "</s>"
    assert made.model_max_length == 4096


def test_merges_of_every_cut_leave_no_text_behind(small):
    for cut in ("default", "gpt-2", "llama-bpe", "qwen2", "deepseek-coder", "starcoder", "smollm"):
        tokenizer = make_tokenizer({**small, "tokenizer.ggml.pre": cut}, CONFIG)
        for text in TEXTS:
            wanted = unicodedata.normalize("NFC", text) if cut == "qwen2" else text
            assert tokenizer.decode(ids(tokenizer, text)) == wanted


def test_numbers_are_cut_as_the_kind_says(small):
    def tokens(cut):
        tokenizer = make_tokenizer({**small, "tokenizer.ggml.pre": cut}, CONFIG)
        pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345")
        return [piece for piece, _ in pieces]

    assert tokens("gpt-2") == ["12345"]
    assert tokens("llama-bpe") == ["123", "45"]
    assert tokens("smollm") == tokens("qwen2") == list("12345")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": "bert"}, "of the kind 'bert'; llama and gpt2 are read"),
        ({"pre": "mystery"}, "cuts words as 'mystery'; read are"),
        ({"tokens": ()}, "holds no tokenizer"),
        ({"tokens": 7}, "tokens is no list of str"),
        ({"tokens": (1, 2)}, "tokens is no list of str"),
        ({"token_type": (1,)}, "512 pieces and 1 values of token_type"),
        ({"merges": ("a b c",)}, "merges 'a b c', which are not two of its pieces"),
        ({"merges": ("zzzz yyyy",)}, "merges 'zzzz yyyy'"),
        ({"merges": ("",)}, "merges ''"),
        ({"model": "llama"}, "has no scores"),
    ],
)
def test_a_vocabulary_without_sense_is_refused_in_words(small, change, problem):
    own = {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(CheckpointError, match=problem):
        make_tokenizer({**small, **own}, CONFIG)


def test_special_ids_outside_the_vocabulary_are_left_out(small):
    tokenizer = make_tokenizer({**small, "tokenizer.ggml.eos_token_id": 99_999}, CONFIG)
    assert tokenizer.eos_token is None
