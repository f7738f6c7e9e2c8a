"""Writes folders of files as revisions of a repository in the hub's cache layout.

    models--owner--name/
    ├── blobs/<sha256>                          the files, each stored once
    ├── refs/<branch>                           the commit that the branch points at
    └── snapshots/<commit>/<file>               links to the blobs

So `huggingface_hub` and everything above it finds each branch offline. What the files say is not
known here.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from loaders.cache import repository_folder

if TYPE_CHECKING:
    from pathlib import Path


def commit_branch(cache_dir: Path, repo: str, branch: str, folder: Path) -> Path:
    """Move a folder's files into the repository as one commit, point the branch at it.

    The commit's id follows from the names and contents of the files alone. Returns the snapshot;
    `folder` is empty afterwards.
    """
    root = repository_folder(cache_dir, repo)
    digests = {
        path.relative_to(folder).as_posix(): _store_blob(root, path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    snapshot = root / "snapshots" / commit
    for name, digest in digests.items():
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(root / "blobs" / digest, link.parent))
    ref = root / "refs" / branch
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    return snapshot


def find_snapshot(cache_dir: Path, repo: str, branch: str) -> Path | None:
    """Return the snapshot that a branch points at, None where there is none."""
    root = repository_folder(cache_dir, repo)
    ref = root / "refs" / branch
    if not ref.is_file():
        return None
    snapshot = root / "snapshots" / ref.read_text().strip()
    return snapshot if snapshot.is_dir() else None


def _store_blob(root: Path, path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    blob = root / "blobs" / digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    path.replace(blob)
    return digest
