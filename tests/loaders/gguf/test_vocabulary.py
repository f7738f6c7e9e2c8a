"""A GGUF file's vocabulary and its settings: read, known to say nothing, or refused."""

import pytest

from loaders.errors import CheckpointError
from loaders.gguf.tokenizer import make_tokenizer
from loaders.gguf.vocabulary import read_vocabulary

CONFIG = {"max_position_embeddings": 4096}
RUNS = ("▁▁", "▁▁▁", "▁▁▁▁")
WORDS = (*"▁abcdefghijklmnopqrstuvwxyz():0123456789", "▁a", "▁b", "re", "ret")
BYTES = tuple(f"<0x{number:02X}>" for number in range(256))


def sentencepiece(*, literal=False, prefix=False, extra=(), kind=4, **settings):
    """A vocabulary as Gemma's: runs of spaces are user-defined pieces."""
    runs = [run.replace("▁", " ") if literal else run for run in RUNS]
    groups = [(("<unk>",), 2), (("<s>", "</s>"), 3), (BYTES, 6), (WORDS, 1), (runs, 4)]
    groups.append((tuple(extra), kind))
    pieces = tuple(piece for group, _ in groups for piece in group)
    own = {
        "model": "llama",
        "tokens": pieces,
        "token_type": tuple(kind for group, kind in groups for _ in group),
        "scores": tuple(-float(number) for number in range(len(pieces))),
        "add_space_prefix": prefix,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **settings,
    }
    return {"general.architecture": "gemma"} | {
        f"tokenizer.ggml.{key}": value for key, value in own.items()
    }


def tokens(tokenizer, text):
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [token.replace(" ", "▁") for token in tokenizer.convert_ids_to_tokens(found)]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("literal", [False, True])
def test_a_run_of_spaces_is_one_piece_however_converters_wrote_it(literal, prefix):
    tokenizer = make_tokenizer(sentencepiece(literal=literal, prefix=prefix), CONFIG)
    start = ["▁a"] if prefix else ["a"]
    assert tokens(tokenizer, "a  b") == [*start, "▁▁", "b"]
    assert tokens(tokenizer, "a    ret") == [*start, "▁▁▁▁", "ret"]
    assert tokens(tokenizer, "a     b") == [*start, "▁▁▁▁", "▁b"]
    assert tokens(tokenizer, "a b") == [*start, "▁b"]
    assert tokens(tokenizer, "x:\n    ret")[-3:] == ["<0x0A>", "▁▁▁▁", "ret"]
    # One space more stands in front where the vocabulary puts one before every text.
    assert tokens(tokenizer, "  a") == (["▁▁▁", "a"] if prefix else ["▁▁", "a"])


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("literal", [False, True])
def test_indented_code_comes_back_from_its_ids(literal, prefix):
    tokenizer = make_tokenizer(sentencepiece(literal=literal, prefix=prefix), CONFIG)
    for text in ("def f(a):\n    ret a\n\n        b", "  two", "a   b  c     d", "é  日本"):
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(found) == text


def test_user_defined_pieces_are_found_whole_beside_runs_of_spaces():
    made = make_tokenizer(sentencepiece(extra=("<table>", "a▁b")), CONFIG)
    assert tokens(made, "c<table>  d") == ["c", "<table>", "▁▁", "d"]
    assert tokens(made, "c a b") == ["c", "▁", "a▁b"]
    spaced = make_tokenizer(sentencepiece(extra=("<table>", "a b"), literal=True), CONFIG)
    assert tokens(spaced, "c a b") == ["c", "▁", "a▁b"]


def test_a_run_that_is_there_in_both_forms_keeps_both():
    made = make_tokenizer(sentencepiece(extra=("  ",)), CONFIG)
    text = "a  b"
    assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text


def byte_level(**settings):
    pieces = ("Ġ", "a", "b", "Ġa", "  ", "    ", "<tag>", "</s>")
    own = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": pieces,
        "token_type": (1, 1, 1, 1, 4, 4, 4, 3),
        "merges": ("Ġ a",),
        "eos_token_id": 7,
        **settings,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in own.items()}


def test_user_defined_pieces_of_byte_level_vocabularies_are_found_whole():
    made = make_tokenizer(byte_level(), CONFIG)
    found = made("a    b<tag>a  b a")["input_ids"]
    assert made.convert_ids_to_tokens(found) == ["a", "    ", "b", "<tag>", "a", "  ", "b", "Ġa"]
    assert made.decode(found) == "a    b<tag>a  b a"


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3"])
def test_llama_3_begins_a_text_by_whatever_name_its_cuts_have(pre):
    made = make_tokenizer(byte_level(pre=pre, bos_token_id=7), CONFIG)
    assert made("a")["input_ids"] == [7, 1]
    silent = make_tokenizer(byte_level(pre=pre, bos_token_id=7, add_bos_token=False), CONFIG)
    assert silent("a")["input_ids"] == [1]


@pytest.mark.parametrize(
    ("key", "neutral", "other"),
    [
        ("remove_extra_whitespaces", False, True),
        ("escape_whitespaces", True, False),
        ("precompiled_charsmap", (), (1, 2, 3)),
        ("normalizer.lowercase", False, True),
        ("normalizer.strip_accents", False, True),
        ("suppress_tokens", (), (5,)),
    ],
)
def test_what_would_make_other_tokens_is_refused_by_name(key, neutral, other):
    make_tokenizer(sentencepiece(**{key: neutral}), CONFIG)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.ggml\.{key} is "):
        make_tokenizer(sentencepiece(**{key: other}), CONFIG)


def test_a_setting_that_nobody_knows_is_refused_and_those_that_say_nothing_are_not():
    named = {"fim_pre_token_id": 5, "eom_token_id": 2, "token_type_count": 1, "add_sep_token": True}
    metadata = sentencepiece(**named)
    metadata |= {"tokenizer.chat_templates": ("a",), "tokenizer.huggingface.json": "{}"}
    make_tokenizer(metadata, CONFIG)
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.brand_new \(1\), which is not"):
        make_tokenizer(sentencepiece(brand_new=1), CONFIG)


@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token", "add_space_prefix"])
def test_a_switch_is_on_or_off(key):
    with pytest.raises(CheckpointError, match=rf"{key} is 1, expected true or false"):
        make_tokenizer(sentencepiece(**{key: 1}), CONFIG)


@pytest.mark.parametrize("kind", [3, 4, 5])
def test_special_pieces_behind_the_models_last_row_are_left_out(kind):
    metadata = sentencepiece(extra=("<pad>",), kind=kind, padding_token_id=len(BYTES))
    rows = len(metadata["tokenizer.ggml.tokens"]) - 1
    made = make_tokenizer(metadata, {**CONFIG, "vocab_size": rows})
    assert "<pad>" not in made.get_vocab()
    assert max(made("a <pad>")["input_ids"]) < rows


def test_ordinary_pieces_behind_it_are_refused():
    metadata = sentencepiece(extra=("word",), kind=1)
    rows = len(metadata["tokenizer.ggml.tokens"]) - 1
    with pytest.raises(CheckpointError, match=rf"{rows + 1} pieces, its model {rows}; .*'word'"):
        make_tokenizer(metadata, {**CONFIG, "vocab_size": rows})


def test_a_model_with_more_rows_than_pieces_is_read():
    metadata = sentencepiece()
    assert len(read_vocabulary(metadata, 10**6).pieces) == len(metadata["tokenizer.ggml.tokens"])


def test_a_piece_that_is_there_twice_or_no_byte_is_refused():
    with pytest.raises(CheckpointError, match="holds the piece '▁a' 2 times"):
        make_tokenizer(sentencepiece(extra=("▁a",)), CONFIG)
    with pytest.raises(CheckpointError, match="'0A' is a byte, expected one as <0x0A>"):
        make_tokenizer(sentencepiece(extra=("0A",), kind=6), CONFIG)


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        (("a" * 1_025,), "1 pieces of up to 1025 characters; at most 1000000 of 1024"),
        (tuple(f"{number:x}" for number in range(1_000_001)), "has 1000001 pieces of up to 5"),
        (tuple(f"{number:01000d}" for number in range(16_001)), "16001000 characters in all"),
    ],
)
def test_a_vocabulary_without_end_is_refused_before_anything_is_made_of_it(pieces, problem):
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces}
    with pytest.raises(CheckpointError, match=problem):
        read_vocabulary(metadata)


def test_more_user_defined_pieces_with_spaces_than_any_vocabulary_has_are_refused():
    many = [f"{number}▁" for number in range(5_001)]
    with pytest.raises(CheckpointError, match="has 5004 user-defined pieces with spaces; at most"):
        make_tokenizer(sentencepiece(extra=many), CONFIG)


def test_a_template_without_end_is_refused():
    metadata = sentencepiece() | {"tokenizer.chat_template": "x" * 1_000_001}
    with pytest.raises(CheckpointError, match="chat_template has 1000001 characters"):
        make_tokenizer(metadata, CONFIG)
