"""Tokenizers that would end or hold a process are refused in words, by another process."""

import json
import subprocess
import sys

import pytest
from tokenizers import pre_tokenizers

from loaders.checkpoint import tokenizer_trial, tokenizer_trial_worker
from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.checkpoint.tokenizer_trial import try_tokenizer
from loaders.errors import CheckpointError, TokenizerNotTriedError
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


def write_vocabulary(folder, parts):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "vocab.json").write_text(json.dumps(parts["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))


def test_a_tokenizer_without_a_file_of_its_own_is_tried_too(tmp_path, parts):
    """Read by Transformers from a vocabulary and merges."""
    write_vocabulary(tmp_path, parts)
    assert len(load_tokenizer(tmp_path)) >= 512
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnope nope\n")
    with pytest.raises(CheckpointError, match="is not used"):
        load_tokenizer(tmp_path)


@pytest.fixture
def bare_python(monkeypatch):
    """A Python that finds this one's packages only where it is told of them, as with PYTHONPATH."""
    if sys.base_prefix == sys.prefix:
        pytest.skip("this Python has its packages in its own place")
    monkeypatch.setattr(sys, "executable", sys._base_executable)


def test_packages_are_found_where_this_process_finds_them(tmp_path, parts, bare_python):
    try_tokenizer(write(tmp_path, parts))
    (tmp_path / "tokenizer.json").unlink()
    write_vocabulary(tmp_path, parts)
    try_tokenizer(tmp_path)


@pytest.fixture
def break_library(tmp_path, monkeypatch):
    """Have the other process find a library that cannot be imported, and does `code` instead."""

    def do(code):
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "tokenizers.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))

    return do


def test_a_library_that_is_missing_is_not_the_tokenizers_fault(tmp_path, parts, break_library):
    break_library("raise ImportError('libnope.so.1: cannot open shared object file')")
    with pytest.raises(TokenizerNotTriedError, match=r"ImportError: libnope.*installation"):
        load_tokenizer(write(tmp_path, parts))


def test_a_library_that_ends_its_process_is_not_the_tokenizers_fault(
    tmp_path, parts, break_library
):
    break_library("import os; os.abort()")
    with pytest.raises(TokenizerNotTriedError, match=r"broke down \(SIGABRT\).*installation"):
        load_tokenizer(write(tmp_path, parts))


def test_what_tells_where_libraries_lie_is_kept_and_keys_are_not(
    tmp_path, parts, break_library, monkeypatch
):
    names = ("LD_LIBRARY_PATH", "TMPDIR", "HOME")
    for name in (*names, "HF_TOKEN"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    break_library("import os; raise ImportError(sorted(os.environ))")
    with pytest.raises(TokenizerNotTriedError) as raised:
        load_tokenizer(write(tmp_path, parts))
    assert all(repr(name) in str(raised.value) for name in names)
    assert "HF_TOKEN" not in str(raised.value)


def test_importing_libraries_takes_nothing_of_the_time_to_read(tmp_path, parts):
    """PyTorch and Transformers alone take more than this."""
    write_vocabulary(tmp_path, parts)
    code = (
        "import sys; from loaders.checkpoint import tokenizer_trial_worker as worker;"
        "worker.READ_CPU_S = 1.0; worker.main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(sys.path)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.stdout.splitlines() == [b'{"begun": true}', b'{"ok": true}'], done


def test_a_starved_machine_is_not_the_tokenizers_fault(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(tokenizer_trial, "_WALL_S", 0.01)
    with pytest.raises(TokenizerNotTriedError, match=r"got .* of processor time.* overloaded"):
        load_tokenizer(write(tmp_path, parts))


def test_processor_time_ends_a_trial_long_before_the_clock_does():
    worker = tokenizer_trial_worker
    most = worker.IMPORT_CPU_S + worker.READ_CPU_S + len(worker.texts()) * worker.TEXT_CPU_S
    assert 5 * most < tokenizer_trial._WALL_S


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "merges.txt"])
def test_a_folder_without_a_vocabulary_is_refused_before_any_process(tmp_path, monkeypatch, name):
    def run(*arguments, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / name).write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"has no tokenizer; add the tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_long_text_of_one_piece_is_no_reason_to_refuse(tmp_path):
    """Vocabularies that split nothing take a run of letters as one word."""
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    try_tokenizer(tmp_path)
