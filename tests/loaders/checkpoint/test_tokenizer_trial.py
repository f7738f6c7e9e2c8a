"""Tokenizers that would end or hold a process are refused in words, by another process."""

import json

import pytest
from tokenizers import pre_tokenizers

from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.checkpoint.tokenizer_trial import try_tokenizer
from loaders.errors import CheckpointError
from tests.models import tiny_tokenizer


@pytest.fixture(scope="module")
def parts():
    return json.loads(tiny_tokenizer().backend_tokenizer.to_str())


def write(folder, parts, **changes):
    (folder / "tokenizer.json").write_text(json.dumps({**parts, **changes}))
    return folder


def split(pattern):
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def replace(pattern, content="b", kind="Regex"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def nested(depth):
    inner = {"type": "Lowercase"}
    for _ in range(depth):
        inner = {"type": "Sequence", "normalizers": [inner]}
    return inner


HOSTILE = {
    "an expression that gives up": ({"pre_tokenizer": split("(a+)+c")}, "retry-limit-in-match"),
    "one that never ends": ({"pre_tokenizer": split(r"\w*\w*\s\d")}, "more processor time"),
    "a slow normaliser": ({"normalizer": replace("(a+)+c")}, "retry-limit-in-match"),
    "nested normalisers": ({"normalizer": nested(200)}, "recursion limit"),
    "normalisers that multiply": (
        {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "a" * 10, "String")] * 3}},
        "ids of 41 characters",
    ),
    "a damaged table": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "Cannot parse precompiled_charsmap",
    ),
    "a table that aborts": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
        "broke down",
    ),
    "a post-processor without its piece": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
        "no entry found",
    ),
    "a decoder with an expression": (
        {"decoder": {"type": "Sequence", "decoders": [replace("(a+)+c")]}},
        r"replaces by the expression '\(a\+\)\+c'",
    ),
    "too many added pieces": (
        {
            "added_tokens": [
                {
                    "id": 600 + i,
                    "content": f"<{i}>",
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for i in range(32_769)
            ]
        },
        "adds 32769 pieces to its vocabulary, at most 32768",
    ),
    "no model": ({"model": {}}, "Model"),
}


@pytest.mark.parametrize(("changes", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_breaks_or_hangs_is_refused_with_the_reason(tmp_path, parts, changes, reason):
    write(tmp_path, parts, **changes)
    with pytest.raises(CheckpointError, match=f"is not used: .*{reason}"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_what_would_fill_the_memory_is_stopped_before(tmp_path, parts):
    many = [replace("a", "a" * 10, "String")] * 9
    write(tmp_path, parts, normalizer={"type": "Sequence", "normalizers": many})
    with pytest.raises(CheckpointError, match=r"is not used: .*(broke down|processor time)"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": nested(20)},
        {"pre_tokenizer": split(r"\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]+")},
        {"decoder": {"type": "Sequence", "decoders": [replace("▁", " ", "String")]}},
        {"decoder": {"type": "Sequence", "decoders": [replace("[▁_]", " ")]}},
        {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                        "stride": 0}},
    ],
    ids=["as it is", "nested a little", "expression", "text", "characters", "truncation"],
)  # fmt: skip
def test_what_encodes_every_text_in_time_is_used(tmp_path, parts, changes):
    try_tokenizer(write(tmp_path, parts, **changes))


def test_a_tokenizer_without_a_file_of_its_own_is_tried_too(tmp_path, parts):
    """Read by Transformers from a vocabulary and merges."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "vocab.json").write_text(json.dumps(parts["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    assert len(load_tokenizer(tmp_path)) >= 512
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnope nope\n")
    with pytest.raises(CheckpointError, match="is not used"):
        load_tokenizer(tmp_path)


def test_a_long_text_of_one_piece_is_no_reason_to_refuse(tmp_path):
    """Vocabularies that split nothing take a run of letters as one word."""
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    try_tokenizer(tmp_path)
