"""Stores of caches and clones are found wherever links and git's own files say that they lie."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from loaders.checkpoint.own_places import OwnPlaces, git_folders, read_model_card

if TYPE_CHECKING:
    from pathlib import Path

HASH = "ab" * 32
KEY = "SHA256E-s7--" + HASH + ".json"
IN_LFS = f"lfs/objects/ab/ab/{HASH}"
IN_ANNEX = f"annex/objects/Xk/0z/{KEY}/{KEY}"


def write(path: Path, text: str = "content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def git(folder: Path, *arguments: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def linked(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def make_clone(folder: Path, git_folder: Path, *, how: str) -> Path:
    """Make a folder whose `.git` is elsewhere, named by a link or in a file."""
    (git_folder / "annex").mkdir(parents=True)
    folder.mkdir()
    if how == "link":
        (folder / ".git").symlink_to(git_folder)
    else:
        (folder / ".git").write_text(f"gitdir: ../{git_folder.relative_to(folder.parent)}\n")
    return folder


@pytest.mark.parametrize("name", [HASH, "ab" * 20])
@pytest.mark.parametrize("what", ["blobs", "the repository", "the cache"])
def test_a_cache_may_lie_on_another_disk_in_part(tmp_path: Path, what: str, name: str):
    repository, disk = tmp_path / "hub" / "models--a--b", tmp_path / "disk"
    disk.mkdir()
    moved = {
        "blobs": repository / "blobs",
        "the repository": repository,
        "the cache": tmp_path / "hub",
    }
    linked(moved[what], disk)
    blob = write(repository / "blobs" / name)
    snapshot = repository / "snapshots" / ("0" * 40)
    path = linked(snapshot / "config.json", blob)
    assert OwnPlaces(snapshot).hold(path)
    assert not OwnPlaces(snapshot).hold(linked(snapshot / "b.json", write(tmp_path / "secret")))


def test_behind_linked_blobs_only_what_is_called_as_a_blob_is_one(tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    secret = write(tmp_path / "home" / "secret")
    linked(tmp_path / "models--a--b" / "blobs", secret.parent)
    assert not OwnPlaces(snapshot).hold(linked(snapshot / "config.json", secret))


@pytest.mark.parametrize("stored", [IN_LFS, IN_ANNEX])
@pytest.mark.parametrize("how", ["link", "file"])
def test_a_submodule_links_to_its_own_large_files(tmp_path: Path, how: str, stored: str):
    above = tmp_path / ".git" / "modules" / "model"
    clone = make_clone(tmp_path / "model", above, how=how)
    path = linked(clone / "config.json", write(above / stored))
    assert OwnPlaces(clone).hold(path)
    for other in ("config", "lfs/objects/secret", "annex/objects/aa/bb/secret/secret"):
        path.unlink()
        assert not OwnPlaces(clone).hold(linked(path, write(above / other)))


@pytest.mark.parametrize("stored", [IN_LFS, IN_ANNEX])
def test_a_worktree_shares_the_large_files_of_its_clone(tmp_path: Path, stored: str):
    clone, tree = tmp_path / "clone", tmp_path / "tree"
    git(clone, "init", "--quiet")
    git(clone, "commit", "--quiet", "--allow-empty", "-m", "files")
    git(clone, "worktree", "add", "--quiet", "--detach", str(tree))
    assert git_folders(tree) == (clone / ".git" / "worktrees" / "tree", clone / ".git")
    path = linked(tree / "config.json", write(clone / ".git" / stored))
    assert OwnPlaces(tree).hold(path)


@pytest.mark.parametrize("below", ["lfs/objects", "annex/objects"])
def test_a_linked_store_of_a_clone_gives_nothing_else_away(tmp_path: Path, below: str):
    secret = write(tmp_path / "home" / "secret")
    store = linked(tmp_path / "clone" / ".git" / below, secret.parent)
    path = linked(tmp_path / "clone" / "config.json", store / "secret")
    assert not OwnPlaces(tmp_path / "clone").hold(path)


@pytest.mark.parametrize("text", ["", "gitdir: ", "gitdir: nowhere", "x" * 20_000])
def test_a_file_of_git_that_names_nothing_makes_no_store(tmp_path: Path, text: str):
    write(tmp_path / "clone" / ".git", text)
    path = linked(tmp_path / "clone" / "config.json", write(tmp_path / "secret"))
    assert not OwnPlaces(tmp_path / "clone").hold(path)


def test_a_model_card_is_read_of_the_folder_or_its_store_alone(tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blob = write(tmp_path / "models--a--b" / "blobs" / HASH, "# card")
    below = linked(snapshot / "gguf" / "README.md", blob)
    assert read_model_card(below, most=3) == b"# c"
    assert read_model_card(tmp_path / "README.md", most=3) is None
    outside = linked(snapshot / "README.md", write(tmp_path / "secret"))
    assert read_model_card(outside, most=3) is None
    (tmp_path / "folder" / "README.md").mkdir(parents=True)
    assert read_model_card(tmp_path / "folder" / "README.md", most=3) is None
