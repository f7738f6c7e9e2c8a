"""Which files a variant needs, from the names of a repository's files."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.checkpoint.weight_files import INDEX_FILE
from loaders.errors import CheckpointError, RevisionNotFoundError, UnsafeCheckpointError
from loaders.gguf.parts import group_parts
from loaders.repository.protocol import checked_path
from loaders.repository.selection import Selection, find_quantisation
from loaders.repository.selection import select_files as select_from
from loaders.repository.spec import VariantSpec

SMALL = ["README.md", "config.json", "merges.txt", "tokenizer.model"]
OTHERS = ["notes.pdf", "modeling_x.py", "original/consolidated.safetensors", "onnx/config.json"]
GGUF = [f"codellama-13b.{kind}.gguf" for kind in ("Q2_K", "Q4_K_S", "Q4_K_M", "Q8_0")]


def spec(file: str | None = None, revision: str | None = None) -> VariantSpec:
    return VariantSpec(repo="a/b", folder=None, revision=revision, file=file)


def select_files(paths, spec, shards=()) -> Selection:
    """Select where the index names these shards."""
    index = {"weight_map": {f"tensor{n}": name for n, name in enumerate(shards)}}
    return select_from(paths, spec, {INDEX_FILE: index, "config.json": {}}.__getitem__)


def test_one_safetensors_file_goes_with_the_small_ones():
    chosen = select_files([*SMALL, *OTHERS, "gptq_model-4bit-128g.safetensors"], spec())
    assert chosen.paths == (*SMALL, "gptq_model-4bit-128g.safetensors")
    assert chosen.file is None


def test_templates_that_have_names_come_from_their_folder():
    named = ["additional_chat_templates/rag.jinja", "chat_template.jinja"]
    others = ["additional_chat_templates/a/b.jinja", "additional_chat_templates/notes.txt"]
    paths = [*named, *others, "other/rag.jinja", "model.safetensors"]
    assert select_files(paths, spec()).small == tuple(named)


def test_the_index_says_which_shards():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    paths = [INDEX_FILE, *shards, "model-fp32.safetensors", "pytorch_model.bin"]
    assert select_files(paths, spec(), shards).weights == tuple(shards)
    with pytest.raises(UnsafeCheckpointError, match=r"\.\./x\.safetensors"):
        select_files(paths, spec(), [*shards, "../x.safetensors"])
    with pytest.raises(CheckpointError, match=r"shard x\.safetensors is missing"):
        select_files(paths, spec(), [*shards, "x.safetensors"])


def test_several_files_without_an_index_are_refused_unless_one_is_the_model():
    with pytest.raises(CheckpointError, match="which belong together"):
        select_files(["a.safetensors", "b.safetensors"], spec())
    chosen = select_files(["adapter.safetensors", "model.safetensors"], spec())
    assert chosen.weights == ("model.safetensors",)


def test_the_file_that_the_settings_name_comes_and_no_other():
    names = ["gptq_model-4bit-128g", "gptq_model-4bit-32g"]
    paths = ["quantize_config.json", "config.json", *(f"{name}.safetensors" for name in names)]
    files = {"config.json": {}, "quantize_config.json": {"model_file_base_name": names[1]}}
    chosen = select_from(paths, spec(), files.__getitem__)
    assert chosen.weights == ("gptq_model-4bit-32g.safetensors",)


def test_a_gguf_file_comes_alone_with_the_small_files():
    chosen = select_files([*SMALL, *GGUF], spec(GGUF[1]))
    assert chosen.weights == (GGUF[1],)
    assert chosen.small == tuple(SMALL)
    assert chosen.file == GGUF[1]


def test_gguf_files_with_none_named_are_listed():
    with pytest.raises(CheckpointError, match="name one") as refused:
        select_files([*SMALL, *GGUF], spec())
    assert all(name in str(refused.value) for name in GGUF)
    assert select_files([GGUF[0]], spec()).file == GGUF[0]


def test_a_gguf_file_that_is_not_there_has_near_matches():
    with pytest.raises(CheckpointError, match=r"did you mean codellama-13b\.Q4_K_M\.gguf"):
        select_files(GGUF, spec("codelama-13b.Q4_K_M.gguf"))


@pytest.mark.parametrize("named", ["m.Q8_0.gguf", "m.Q8_0.gguf-split-a", "m.Q8_0.gguf-split-b"])
def test_parts_cut_with_split_come_together(named):
    parts = ("m.Q8_0.gguf-split-a", "m.Q8_0.gguf-split-b")
    chosen = select_files([*reversed(parts), "m.Q2_K.gguf"], spec(named))
    assert chosen.weights == parts
    assert chosen.file == parts[0]


def test_parts_of_a_set_come_together_and_must_be_complete():
    parts = [f"Q6_K/m-Q6_K-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    chosen = select_files(parts, spec("Q6_K/m-Q6_K.gguf"))
    assert chosen.weights == tuple(parts)
    assert select_files(parts, spec(parts[2])).file == parts[0]
    for part in (parts[:2], ["m.gguf-split-b"]):
        with pytest.raises(CheckpointError, match="are missing"):
            select_files(part, spec(group_parts(part)[0].name))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("Q4_K_M", GGUF[2]), ("q4_k_s", GGUF[1]), ("Q4_K", None), ("13b", None), ("Q5_0", None)],
)
def test_a_quantisation_is_a_whole_word_of_a_files_name(wanted, found):
    paths = [*GGUF, "iq/codellama.IQ5_0.gguf"]
    assert find_quantisation(paths, wanted) == found


def test_a_quantisation_of_two_files_is_refused_with_both():
    with pytest.raises(RevisionNotFoundError, match=r"x\.Q4_0\.gguf, y\.Q4_0\.gguf"):
        find_quantisation(["x.Q4_0.gguf", "y.Q4_0.gguf"], "Q4_0")


def test_pickles_and_empty_repositories_are_refused():
    with pytest.raises(UnsafeCheckpointError, match=r"pytorch_model\.bin"):
        select_files(["config.json", "pytorch_model.bin"], spec())
    with pytest.raises(CheckpointError, match="no weights"):
        select_files(["config.json"], spec())


@pytest.mark.parametrize(
    "path",
    [
        "../x.json", "/etc/passwd", "a/../../x.json", "a\\..\\x.json", "a\0.json", "a\n.json", "",
        "a//b.json", "./x.json", "..", "x" * 256 + ".json", "\ud800.json", "a/" * 600 + "b.json",
    ],
)  # fmt: skip
def test_names_that_could_leave_the_cache_are_refused(path):
    with pytest.raises(UnsafeCheckpointError, match="nothing of it was used"):
        select_files(["model.safetensors", path], spec())


@given(st.text(max_size=300))
def test_an_accepted_name_stays_inside_any_folder(path):
    try:
        checked_path(path)
    except UnsafeCheckpointError:
        return
    joined = PurePosixPath("/cache") / path
    assert joined.is_relative_to("/cache")
    assert ".." not in joined.parts
    assert str(joined) == f"/cache/{path}"
