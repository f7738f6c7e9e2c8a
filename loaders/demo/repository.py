"""Writes folders of files as revisions of a repository in the hub's cache layout.

So `huggingface_hub` and everything above it finds each branch offline. The layout is
`loaders.repository.cache_layout`'s; what the files say is not known here.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from loaders.repository.cache_layout import CachedRepository
from loaders.repository.manifest import sha256_of_file
from loaders.repository.protocol import RepositoryFile

if TYPE_CHECKING:
    from pathlib import Path

_ENDPOINT = "this machine"  # where the files came from, as their manifest says


def commit_branch(cache_dir: Path, repo: str, branch: str, folder: Path) -> Path:
    """Move a folder's files into the repository as one commit, point the branch at it.

    The commit's id follows from the names and contents of the files alone. Returns the snapshot;
    `folder` is empty afterwards.
    """
    cached = CachedRepository(cache_dir, repo)
    files = [
        _store_blob(cached, path, path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in files)
    commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
    cached.publish(commit, files, {file: str(file.sha256) for file in files}, _ENDPOINT)
    cached.point(branch, commit)
    return cached.snapshot(commit)


def find_snapshot(cache_dir: Path, repo: str, branch: str) -> Path | None:
    """Return the snapshot that a branch points at, None where there is none, or a part of it."""
    cached = CachedRepository(cache_dir, repo)
    commit = cached.commit_of(branch)
    if commit is None or not cached.has_snapshot(commit):
        return None
    manifest = cached.manifest(commit)  # there is none of what older versions built
    if manifest is not None and not cached.is_whole(commit, manifest.files.keys()):
        return None
    return cached.snapshot(commit)


def _store_blob(cached: CachedRepository, source: Path, path: str) -> RepositoryFile:
    file = RepositoryFile(path, source.stat().st_size, sha256=sha256_of_file(source), blob_id=None)
    blob = cached.blob(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    source.replace(blob)
    return file
