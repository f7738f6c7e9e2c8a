"""A local git clone of a repository: the files of one branch, large-file pointers resolved.

A branch that is checked out is used where it is. Any other is written out once to the cache, by
commit, so the clone itself is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from loaders.cache import default_cache_dir
from loaders.errors import CheckpointError, RevisionNotFoundError
from loaders.hub import Snapshot

if TYPE_CHECKING:
    from loaders.spec import VariantSpec

_POINTER = b"version https://git-lfs"
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_MAX_POINTER_BYTES = 1024


def open_folder(spec: VariantSpec, *, cache_dir: Path | None = None) -> Snapshot:
    """Return the folder of a local variant, at the branch asked for where it is a git clone.

    Raises RevisionNotFoundError where a plain folder is asked for a revision, or the clone lacks
    it.
    """
    if spec.folder is None:
        raise ValueError("open_folder takes a spec with a folder")
    is_clone = (spec.folder / ".git").exists()
    if not is_clone:
        if spec.revision is not None:
            raise RevisionNotFoundError(
                f"{spec.folder} is a plain folder, not a git clone, so it has no revision"
                f" {spec.revision!r};"
                " name the folder alone"
            )
        return Snapshot(folder=spec.folder, commit=None)
    return _open_clone(spec.folder, spec.revision, cache_dir or default_cache_dir())


def _open_clone(clone: Path, revision: str | None, cache_dir: Path) -> Snapshot:
    head = _commit(clone, "HEAD")
    wanted = head if revision is None else _resolve(clone, revision)
    if wanted == head and not _has_pointers(clone):
        return Snapshot(folder=clone, commit=head)
    target = cache_dir / "clones" / f"{clone.name}-{wanted}"
    if not target.exists():
        _export(clone, wanted, target)
    return Snapshot(folder=target, commit=wanted)


def _resolve(clone: Path, revision: str) -> str:
    for name in (revision, f"origin/{revision}"):
        try:
            return _commit(clone, name)
        except CheckpointError:
            continue
    listing = _git(
        clone,
        "for-each-ref",
        "--format=%(refname:short)",
        "refs/heads",
        "refs/remotes",
        "refs/tags",
    )
    names = sorted(
        {n.removeprefix("origin/") for n in listing.decode().split()} - {"HEAD", "origin"}
    )
    raise RevisionNotFoundError(
        f"the clone {clone} has no revision {revision!r}; it has {', '.join(names) or 'none'}"
    )


def _commit(clone: Path, name: str) -> str:
    return (
        _git(clone, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        .decode()
        .strip()
    )


def _git(clone: Path, *arguments: str, stdout: IO[bytes] | None = None) -> bytes:
    """Run a git command that only reads; return what it wrote, or write it to a file."""
    # The clone may belong to somebody else (a mounted volume), and its settings may name programs.
    # None of them runs: no hooks on reading, and nothing is fetched (a partial clone would fetch
    # missing objects, through whatever command its remote names).
    settings = ["-c", f"safe.directory={clone}", "-c", "protocol.allow=never"]
    try:
        done = subprocess.run(
            ["git", *settings, "-C", str(clone), *arguments],
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"},
            check=True,
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{clone} is a git clone and git is not installed; install git"
        ) from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip() or f"exit {error.returncode}"
        raise CheckpointError(f"git {arguments[0]} failed in {clone}: {reason}") from error
    return done.stdout or b""


def _has_pointers(folder: Path) -> bool:
    return any(_is_pointer(path) for path in folder.glob("*") if path.is_file())


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > _MAX_POINTER_BYTES:
        return False
    return path.read_bytes().startswith(_POINTER)


def _export(clone: Path, commit: str, target: Path) -> None:
    """Write the commit's top-level files to `target`, all or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for name in _git(clone, "ls-tree", "-z", "--name-only", commit).decode().split("\0"):
            if name and "/" not in name:
                _write_file(clone, commit, name, partial / name)
        os.replace(partial, target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_file(clone: Path, commit: str, name: str, path: Path) -> None:
    kind = _git(clone, "cat-file", "-t", f"{commit}:{name}").strip()
    if kind != b"blob":
        return
    size = int(_git(clone, "cat-file", "-s", f"{commit}:{name}"))
    content = (
        _git(clone, "cat-file", "blob", f"{commit}:{name}") if size <= _MAX_POINTER_BYTES else None
    )
    if content is not None and content.startswith(_POINTER):
        _link_large_file(clone, name, content, path)
        return
    with path.open("wb") as file:
        _git(clone, "cat-file", "blob", f"{commit}:{name}", stdout=file)


def _link_large_file(clone: Path, name: str, pointer: bytes, path: Path) -> None:
    match = _OID.search(pointer)
    oid = match[1].decode() if match else ""
    git_dir = Path(_git(clone, "rev-parse", "--absolute-git-dir").decode().strip())
    stored = git_dir / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    if not oid or not stored.is_file():
        raise CheckpointError(
            f"{name} is a git-lfs pointer and its content was not fetched; run `git lfs pull` in"
            f" {clone}"
        )
    path.symlink_to(stored)
