"""Where the hashes of a variant's files are known from, and what a user is told to do."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from loaders.cache import BUILT_MARK
from loaders.demo.repository import commit_branch
from loaders.repository.cache_layout import CachedRepository
from loaders.repository.known_hashes import known_hashes
from loaders.repository.opening import open_snapshot
from loaders.repository.snapshot import Snapshot
from loaders.repository.spec import parse_spec
from tests.hub_server import blob_id_of
from tests.loaders.repository.test_git_clone import git

if TYPE_CHECKING:
    from pathlib import Path

    from loaders.repository.known_hashes import KnownHashes

REPO = "someone/Model-GPTQ"
WEIGHTS = b"weights" * 1000
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def known_of(text: str, cache_dir: Path) -> KnownHashes:
    spec = parse_spec(text)
    return known_hashes(spec, open_snapshot(spec, cache_dir=cache_dir, local_files_only=True))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    commit_branch(tmp_path / "cache", REPO, "main", write(tmp_path / "files", FILES))
    return tmp_path / "cache"


def manifest_of(cache: Path) -> Path:
    (path,) = CachedRepository(cache, REPO).folder.glob("manifests/*.json")
    return path


def test_a_cache_has_the_hashes_of_its_manifest(cache: Path):
    known = known_of(f"{REPO}:main", cache)
    assert {path: file.sha256 for path, file in known.files.items()} == {
        path: sha256(content) for path, content in FILES.items()
    }
    assert not known.may_be_edited
    assert known.remedy("config.json").endswith(
        f"`tetrad download {REPO}:main --verify --cache-dir {cache}`"
    )


def test_a_link_to_another_blob_does_not_change_what_is_expected(cache: Path):
    snapshot = open_snapshot(parse_spec(f"{REPO}:main"), cache_dir=cache, local_files_only=True)
    other = CachedRepository(cache, REPO).folder / "blobs" / sha256(b"other")
    other.write_bytes(b"other")
    (snapshot.folder / "config.json").unlink()
    (snapshot.folder / "config.json").symlink_to(other)
    known = known_hashes(parse_spec(f"{REPO}:main"), snapshot)
    assert known.files["config.json"].sha256 == sha256(b"{}")


def test_without_a_manifest_blobs_are_named_by_their_hashes(cache: Path):
    """So do other programs leave a cache: large files by sha256, small ones by git's id."""
    manifest_of(cache).unlink()
    snapshot = open_snapshot(parse_spec(f"{REPO}:main"), cache_dir=cache, local_files_only=True)
    small = CachedRepository(cache, REPO).folder / "blobs" / blob_id_of(b"{}")
    small.write_bytes(b"{}")
    (snapshot.folder / "config.json").unlink()
    (snapshot.folder / "config.json").symlink_to(small)
    known = known_hashes(parse_spec(f"{REPO}:main"), snapshot).files
    assert known["config.json"].blob_id == blob_id_of(b"{}")
    assert known["model.safetensors"].sha256 == sha256(WEIGHTS)


def test_without_links_a_mirrors_list_still_knows(cache: Path):
    """As after a copy that follows links and leaves the manifests behind."""
    snapshot = open_snapshot(parse_spec(f"{REPO}:main"), cache_dir=cache, local_files_only=True)
    manifest_of(cache).unlink()
    for name, content in FILES.items():
        (snapshot.folder / name).unlink()
        (snapshot.folder / name).write_bytes(content)
    assert known_hashes(parse_spec(f"{REPO}:main"), snapshot).files == {}
    files = {
        name: {"num_bytes": len(content), "sha256": sha256(content)}
        for name, content in FILES.items()
    }
    entry = {
        "spec": f"{REPO}:main", "repo": REPO, "revision": "main", "commit": snapshot.commit,
        "endpoint": "https://hub", "created": "2026-11-28T00:00:00+00:00", "files": files,
    }  # fmt: skip
    mirror_list = cache / "tetrad-mirror.json"
    mirror_list.write_text(json.dumps({"version": 1, "variants": [entry]}))
    known = known_hashes(parse_spec(f"{REPO}:main"), snapshot).files
    assert known["model.safetensors"].sha256 == sha256(WEIGHTS)
    mirror_list.write_text("{")
    assert known_hashes(parse_spec(f"{REPO}:main"), snapshot).files == {}


def test_what_was_built_here_is_to_be_built_again(cache: Path):
    folder = CachedRepository(cache, REPO).folder
    (folder / BUILT_MARK).write_text("{}")
    assert f"remove {folder}" in known_of(f"{REPO}:main", cache).remedy("config.json")


def test_a_snapshot_named_by_its_folder_is_known_as_well(cache: Path):
    snapshot = open_snapshot(parse_spec(f"{REPO}:main"), cache_dir=cache, local_files_only=True)
    known = known_of(str(snapshot.folder), cache)
    assert set(known.files) == set(FILES)
    assert f"`tetrad download {REPO} --verify" in known.remedy("config.json")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A git clone with `main` checked out, `other` beside it; the weights are a large file."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(WEIGHTS)}\n"
        f"size {len(WEIGHTS)}\n"
    )
    write(folder, {"config.json": b"{}", "model.safetensors": pointer.encode()})
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "files")
    git(folder, "branch", "other")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "later")
    name = sha256(WEIGHTS)
    write(folder / ".git" / "lfs" / "objects" / name[:2] / name[2:4], {name: WEIGHTS})
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_a_clone_knows_the_commits_ids_and_the_pointers_of_large_files(clone: Path, tmp_path: Path):
    known = known_of(str(clone), tmp_path / "cache")
    assert known.files["config.json"].blob_id == blob_id_of(b"{}")
    assert known.files["model.safetensors"].sha256 == sha256(WEIGHTS)
    assert known.files["model.safetensors"].num_bytes == len(WEIGHTS)
    assert known.may_be_edited
    assert f"`git -C {clone} checkout HEAD -- config.json`" in known.remedy("config.json")


def test_another_branch_of_a_clone_was_written_out_and_is_nobodys_to_edit(
    clone: Path, tmp_path: Path
):
    known = known_of(f"{clone}:other", tmp_path / "cache")
    assert known.files["model.safetensors"].sha256 == sha256(WEIGHTS)
    assert not known.may_be_edited
    assert "which is written anew" in known.remedy("config.json")
    stored = clone / ".git" / "lfs" / "objects"
    assert f"remove {stored}" in known.remedy("model.safetensors")


def test_a_plain_folder_says_nothing(tmp_path: Path):
    assert known_of(str(write(tmp_path / "plain", FILES)), tmp_path).files == {}


def test_a_plain_folder_may_bring_its_sums(tmp_path: Path):
    folder = write(tmp_path / "plain", FILES)
    (folder / "SHA256SUMS").write_text(
        f"{sha256(WEIGHTS)}  model.safetensors\n{sha256(b'{}')} *./config.json\n"
        f"{sha256(b'gone')}  gone.safetensors\nnot a line of it\n"
    )
    known = known_of(str(folder), tmp_path)
    assert {path: file.sha256 for path, file in known.files.items()} == {
        path: sha256(content) for path, content in FILES.items()
    }
    assert not known.may_be_edited
    assert "SHA256SUMS" in known.remedy("config.json")


def test_a_folder_that_the_hubs_client_filled_brings_its_notes(tmp_path: Path):
    folder = write(tmp_path / "plain", FILES)
    etags = {"model.safetensors": sha256(WEIGHTS), "config.json": blob_id_of(b"{}")}
    notes = {
        f".cache/huggingface/download/{path}.metadata": f"{'0' * 40}\n{etag}\n1.5\n".encode()
        for path, etag in {**etags, "odd.json": "W/abc", "gone.json": "1" * 64}.items()
    }
    write(folder, {**notes, "odd.json": b"{}"})
    known = known_of(str(folder), tmp_path)
    assert known.files["model.safetensors"].sha256 == etags["model.safetensors"]
    assert known.files["config.json"].blob_id == etags["config.json"]
    assert set(known.files) == set(FILES)
    assert known.may_be_edited


@pytest.mark.parametrize("name", ["SHA256SUMS", ".cache/huggingface/download/config.json.metadata"])
def test_a_pipe_in_place_of_a_list_keeps_nobody_waiting(tmp_path: Path, name: str):
    folder = write(tmp_path / "plain", FILES)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / name)
    assert known_hashes(parse_spec(str(folder)), Snapshot(folder, None)).files == {}
