"""Damage to a variant's files, wherever they lie, is named by file, and nothing is loaded of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from loaders.demo.repository import commit_branch
from loaders.errors import CheckpointError
from loaders.load import LoadedModel, load
from loaders.repository.cache_layout import CachedRepository
from tests import models
from tests.gguf_writer import mixed, model_metadata, model_tensors, write_gguf
from tests.loaders.repository.test_git_clone import git

if TYPE_CHECKING:
    from loaders.demo import DemoRepositories

REPO = "someone/Model-GPTQ"
WEIGHTS = "model.safetensors"


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit of a file, whatever links lead there; in the middle where no place is named.

    Its size, inode and times stay.
    """
    status, where = path.stat(), path.stat().st_size // 2 if at is None else at
    path.resolve().chmod(0o644)
    with path.resolve().open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def load_here(variant: str, cache: Path, **options: object) -> LoadedModel:
    return load(
        variant, device="cpu", backend="reference", cache_dir=cache, local_files_only=True,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised checkpoint of several shards."""
    return models.write_gptq_checkpoint(
        tmp_path_factory.mktemp("checkpoint"),
        models.tiny_llama(),
        bits=4,
        group_size=64,
        tokenizer=models.tiny_tokenizer(),
        max_shard_bytes=1_000_000,
    )


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "files"))


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    """The hub's cache with one branch in it."""
    commit_branch(tmp_path / "cache", REPO, "main", folder)
    return tmp_path / "cache"


def in_cache(cache: Path, name: str) -> Path:
    (found,) = CachedRepository(cache, REPO).folder.glob(f"snapshots/*/{name}")
    return found


def last_shard(folder: Path) -> str:
    return max(path.name for path in folder.glob("*.safetensors"))


def test_a_whole_variant_loads_and_tells_what_was_compared(cache: Path):
    with structlog.testing.capture_logs() as lines:
        first = load_here(REPO, cache)
        again = load_here(REPO, cache)
    assert first.verified is not None
    assert again.verified is not None
    shards = list(in_cache(cache, "config.json").parent.glob("*.safetensors"))
    assert first.verified.num_files == again.verified.num_files + len(shards)
    assert again.verified.num_unchanged == len(shards) > 1
    told = [line for line in lines if line["event"] == "loaded"]
    assert told[0]["hashed_bytes"] > sum(shard.stat().st_size for shard in shards)
    assert told[1]["unchanged_files"] == len(shards)
    assert first.suspicions == again.suspicions == ()


@pytest.mark.parametrize("name", ["a shard", "config.json", "tokenizer.json"])
def test_a_flipped_bit_in_a_cache_is_named(cache: Path, name: str):
    name = last_shard(in_cache(cache, "config.json").parent) if name == "a shard" else name
    flip(in_cache(cache, name))
    with pytest.raises(CheckpointError) as caught:
        load_here(REPO, cache)
    assert f"{name} is damaged: sha256 " in str(caught.value)
    assert f"`tetrad download {REPO} --verify --cache-dir {cache}`" in str(caught.value)


def test_damage_under_the_self_test_leaves_no_known_tokens_behind(cache: Path):
    name = last_shard(in_cache(cache, "config.json").parent)
    flip(in_cache(cache, name))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_here(REPO, cache, self_test=True)
    assert not list((cache / "records").glob("*.json"))
    flip(in_cache(cache, name))
    report = load_here(REPO, cache, self_test=True).self_test
    assert report is not None
    assert report.passed


def test_a_damaged_header_is_told_as_damage_and_not_as_what_it_seems(cache: Path):
    """One letter of a dtype, which makes another tensor of it."""
    path = in_cache(cache, last_shard(in_cache(cache, "config.json").parent))
    start = path.read_bytes()[:100_000]
    at = start.index(b'"I32"') + 1
    with path.resolve().open("r+b") as file:
        file.seek(at)
        file.write(b"Q")
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged: sha256") as caught:
        load_here(REPO, cache)
    assert caught.value.__cause__ is not None


def test_the_modes_of_one_variant(cache: Path):
    load_here(REPO, cache)
    flip(in_cache(cache, last_shard(in_cache(cache, "config.json").parent)))
    load_here(REPO, cache)  # the time is as it was: `changed` cannot see it
    with pytest.raises(CheckpointError, match="is damaged"):
        load_here(REPO, cache, verify="always")
    found = load_here(REPO, cache, verify="never").verified
    assert found is not None
    assert found.num_bytes == 0


def test_what_other_programs_fetched_is_known_by_the_names_of_its_blobs(cache: Path):
    for manifest in CachedRepository(cache, REPO).folder.glob("manifests/*"):
        manifest.unlink()
    load_here(REPO, cache)
    name = last_shard(in_cache(cache, "config.json").parent)
    flip(in_cache(cache, name))
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load_here(REPO, cache, verify="always")


@pytest.fixture
def clone(folder: Path) -> Path:
    """The checkpoint as a git clone, its last shard kept by git-lfs."""
    git(folder, "init", "--quiet", "--initial-branch=main")
    shard = folder / last_shard(folder)
    content = shard.read_bytes()
    name = hashlib.sha256(content).hexdigest()
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    shard.write_text(f"{pointer}oid sha256:{name}\nsize {len(content)}\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "files")
    git(folder, "branch", "other")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "later")
    shard.write_bytes(content)
    stored = folder / ".git" / "lfs" / "objects" / name[:2] / name[2:4] / name
    stored.parent.mkdir(parents=True)
    stored.write_bytes(content)
    return folder


def test_a_flipped_bit_in_a_clone_is_named(clone: Path, tmp_path: Path):
    cache, names = tmp_path / "cache", sorted(path.name for path in clone.glob("*.safetensors"))
    load_here(str(clone), cache)
    for name, kind in ((names[-1], "sha256"), (names[0], "git id")):  # in git-lfs, and in git
        flip(clone / name)
        with pytest.raises(CheckpointError, match=f"{name} is damaged: {kind}") as caught:
            load_here(str(clone), cache, verify="always")
        assert f"checkout HEAD -- {name}" in str(caught.value)
        flip(clone / name)


def test_a_flipped_bit_in_what_was_written_out_of_a_clone_is_named(clone: Path, tmp_path: Path):
    cache, variant = tmp_path / "cache", f"{clone}:other"
    whole = load_here(variant, cache)
    name = last_shard(clone)
    for damaged in (name, "config.json"):
        flip(whole.provenance.folder / damaged)
        with pytest.raises(CheckpointError, match=f"{damaged} is damaged"):
            load_here(variant, cache, verify="always")
        flip(whole.provenance.folder / damaged)


def test_an_edited_setting_in_a_clone_is_loaded_and_suspected(clone: Path, tmp_path: Path):
    path = clone / "generation_config.json"
    assert load_here(str(clone), tmp_path / "cache").suspicions == ()
    path.write_text(json.dumps({"temperature": 0.5}))
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "cooler")
    assert load_here(str(clone), tmp_path / "cache").suspicions == ()
    path.write_text(json.dumps({"temperature": 0.7}))
    loaded = load_here(str(clone), tmp_path / "cache")
    (suspicion,) = loaded.suspicions
    assert suspicion.check == "edited_file"
    assert "generation_config.json was edited or damaged: " in suspicion.reason
    assert loaded.generation.temperature == 0.7


@pytest.mark.parametrize("place", ["tensors", "metadata"])
def test_a_flipped_bit_in_a_gguf_file_is_named(tmp_path: Path, place: str):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    model, files = models.tiny_llama(**sizes), tmp_path / "files"
    files.mkdir()
    for name in ("m.Q8_0.gguf", "m.Q4_0.gguf"):  # of one commit
        choose = mixed(name.split(".")[1], "Q8_0", [])
        write_gguf(
            files / name,
            model_metadata(model, models.tiny_tokenizer()),
            model_tensors(model, choose),
        )
    cache = tmp_path / "cache"
    commit_branch(cache, REPO, "main", files)
    path = in_cache(cache, "m.Q8_0.gguf")
    magic_and_counts = struct.calcsize("<4sIQQ")
    flip(path, at=None if place == "tensors" else magic_and_counts + 12)
    with pytest.raises(CheckpointError, match=r"m\.Q8_0\.gguf is damaged: sha256"):
        load_here(f"{REPO}:Q8_0", cache)
    assert load_here(f"{REPO}:Q4_0", cache).verified is not None  # which lies beside it


@pytest.mark.slow
def test_a_flipped_bit_in_the_demo_is_named(demo: DemoRepositories, tmp_path: Path):
    variant = f"{demo.gptq_repo}:gptq-3bit-64g-actorder_True"
    source = CachedRepository(demo.cache_dir, demo.gptq_repo)
    commit = str(source.commit_of("gptq-3bit-64g-actorder_True"))
    files = Path(shutil.copytree(source.snapshot(commit), tmp_path / "files"))
    cache = tmp_path / "cache"
    commit_branch(cache, demo.gptq_repo, "gptq-3bit-64g-actorder_True", files)
    shutil.copy(source.folder / "tetrad-built.json", CachedRepository(cache, demo.gptq_repo).folder)
    link = CachedRepository(cache, demo.gptq_repo).snapshot(commit) / WEIGHTS
    flip(link)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is damaged") as caught:
        load_here(variant, cache)
    assert "`tetrad demo` builds the demo" in str(caught.value)
    flip(link)
    assert load_here(variant, cache).verified is not None
