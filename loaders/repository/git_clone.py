"""A local git clone of a repository: the files of one branch, large-file pointers resolved.

A branch that is checked out is used where it is. What is needed of any other is written out once to
the cache, by commit, so the clone itself is never touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from loaders.checkpoint.files import MAX_JSON_BYTES, parse_json
from loaders.errors import CheckpointError, RevisionNotFoundError, UnsafeCheckpointError
from loaders.repository.local_files import list_paths
from loaders.repository.protocol import checked_path
from loaders.repository.selection import find_local, has_gguf, select_files
from loaders.repository.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from loaders.repository.spec import VariantSpec

_POINTER = b"version https://git-lfs"
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(rb"^size (\d{1,18})$", re.MULTILINE)
MAX_POINTER_BYTES = 1024
_PIECE_BYTES = 1_000_000


def open_clone(clone: Path, spec: VariantSpec, *, cache_dir: Path) -> Snapshot:
    """Return the folder of one of a clone's variants, written out where it is not checked out."""
    head = commit_of(clone, "HEAD")
    wanted = head if spec.revision is None else resolve_commit(clone, spec.revision)
    blobs = list_blobs(clone, wanted)
    read = partial(_read_json, clone, blobs)
    found = find_local(blobs, spec, read)
    is_here = wanted == head and not (found and _has_pointers(clone, found.paths))
    if is_here and (found or not spec.file or has_gguf(list_paths(clone), spec.file)):
        # What is not in the commit was laid there since, or the loader says best what is missing.
        return Snapshot(clone, head, file=found.file if found else None, clone=clone)
    if found is None:
        found = select_files(blobs, spec, read)  # says what is wrong
    target = cache_dir / "clones" / _folder_name(clone, wanted, spec.file)
    if not target.exists():
        _export(clone, {path: blobs[path] for path in found.paths}, target)
    return Snapshot(target, wanted, file=found.file, clone=clone)


def _folder_name(clone: Path, commit: str, file: str | None) -> str:
    """Name the folder that a variant is written out to, as short as file systems want it."""
    part = "" if file is None else f"-{hashlib.sha256(file.encode()).hexdigest()[:16]}"
    return f"{clone.name[:80]}-{commit}{part}"


@dataclass(frozen=True, slots=True)
class Blob:
    """A file's content, as git keeps it."""

    name: str  # git's hash of it
    num_bytes: int | None  # None where a partial clone lacks it


def list_blobs(clone: Path, commit: str) -> dict[str, Blob]:
    """List a commit's files by path, unchecked; links are left out, as nobody follows them."""
    listing = run_git(clone, "ls-tree", "-r", "-z", "-l", "--full-tree", commit)
    blobs: dict[str, Blob] = {}
    for line in listing.decode(errors="replace").split("\0"):
        about, _, path = line.partition("\t")
        if path:
            mode, kind, name, size = about.split()
            if kind == "blob" and mode != "120000":
                blobs[path] = Blob(name, int(size) if size.isdecimal() else None)
    return blobs


def _read_json(clone: Path, blobs: Mapping[str, Blob], path: str) -> Mapping[str, Any]:
    """Read one of a commit's settings files."""
    size = blobs[path].num_bytes
    if size is None or size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} of {clone} is missing, or too large for a settings file")
    return parse_json(path, read_blob(clone, blobs[path].name, start=0, num_bytes=size))


def resolve_commit(clone: Path, revision: str) -> str:
    """Return the commit of a branch, tag or commit; raise RevisionNotFoundError."""
    for name in (revision, f"origin/{revision}"):
        try:
            return commit_of(clone, name)
        except CheckpointError:
            continue
    listing = run_git(
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


def commit_of(clone: Path, name: str) -> str:
    """Return the commit that git's name for it means; raise CheckpointError."""
    return (
        run_git(clone, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        .decode()
        .strip()
    )


def run_git(
    clone: Path, *arguments: str, stdin: bytes = b"", stdout: IO[bytes] | None = None
) -> bytes:
    """Run a git command that only reads; return what it wrote, or write it to a file."""
    try:
        done = subprocess.run(
            _command(clone, arguments),
            input=stdin,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            check=True,
        )
    except FileNotFoundError as error:
        raise _no_git(clone) from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip() or f"exit {error.returncode}"
        raise CheckpointError(f"git {arguments[0]} failed in {clone}: {reason}") from error
    return done.stdout or b""


def read_blob(clone: Path, blob: str, *, start: int, num_bytes: int) -> bytes:
    """Read a piece of a file by git's hash of it; what lies before is read past."""
    try:
        running = subprocess.Popen(
            _command(clone, ("cat-file", "blob", blob)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
    except FileNotFoundError as error:
        raise _no_git(clone) from error
    with running:
        if running.stdout is None:
            raise AssertionError("stdout is a pipe")
        while start > 0 and (skipped := len(running.stdout.read(min(start, _PIECE_BYTES)))):
            start -= skipped
        piece = running.stdout.read(num_bytes)
        is_at_end = len(piece) < num_bytes
        if not is_at_end:
            running.kill()
    if is_at_end and running.returncode != 0:
        raise CheckpointError(f"git cat-file failed in {clone}: it lacks the object {blob}")
    return piece


def _command(clone: Path, arguments: Sequence[str]) -> list[str]:
    # The clone may belong to somebody else (a mounted volume), and its settings may name programs.
    # None of them runs: no hooks on reading, and nothing is fetched (a partial clone would fetch
    # missing objects, through whatever command its remote names).
    settings = ["-c", f"safe.directory={clone}", "-c", "protocol.allow=never"]
    return ["git", *settings, "-C", str(clone), *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}


def _no_git(clone: Path) -> CheckpointError:
    return CheckpointError(f"{clone} is a git clone and git is not installed; install git")


def _has_pointers(folder: Path, paths: Iterable[str]) -> bool:
    return any(_is_pointer(folder / path) for path in paths if (folder / path).is_file())


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > MAX_POINTER_BYTES:
        return False
    return path.read_bytes().startswith(_POINTER)


def _export(clone: Path, blobs: Mapping[str, Blob], target: Path) -> None:
    """Write some of a commit's files to `target`, all or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for path, blob in blobs.items():
            file = staging / checked_path(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_file(clone, path, blob, file)
        os.replace(staging, target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_file(clone: Path, name: str, blob: Blob, path: Path) -> None:
    if blob.num_bytes is None or blob.num_bytes > MAX_POINTER_BYTES:
        with path.open("wb") as file:
            run_git(clone, "cat-file", "blob", blob.name, stdout=file)
        return
    content = run_git(clone, "cat-file", "blob", blob.name)
    if content.startswith(_POINTER):
        _link_large_file(clone, name, content, path)
    else:
        path.write_bytes(content)


def _link_large_file(clone: Path, name: str, content: bytes, path: Path) -> None:
    pointer = read_pointer(content)
    stored = find_large_file(clone, pointer.sha256) if pointer else None
    if stored is None:
        raise not_fetched(clone, name)
    path.symlink_to(stored)


@dataclass(frozen=True, slots=True)
class Pointer:
    """What git-lfs keeps in place of a large file."""

    sha256: str
    num_bytes: int


def read_pointer(content: bytes) -> Pointer | None:
    """Read a git-lfs pointer; None where the content is none."""
    if len(content) > MAX_POINTER_BYTES or not content.startswith(_POINTER):
        return None
    oid, size = _OID.search(content), _SIZE.search(content)
    return Pointer(oid[1].decode(), int(size[1])) if oid and size else None


def find_large_file(clone: Path, sha256: str) -> Path | None:
    """Return where git-lfs stored a large file, None where it was not fetched.

    Raises UnsafeCheckpointError where a link lies there instead.
    """
    store = large_file_store(clone)
    stored = store / sha256[:2] / sha256[2:4] / sha256
    if not stored.is_file():
        return None
    if not stored.resolve().is_relative_to(store.resolve()):
        raise UnsafeCheckpointError(
            f"{stored} is a link to {stored.resolve()}, which is outside of the clone's large files"
        )
    return stored


def large_file_store(clone: Path) -> Path:
    """Return the folder in which git-lfs keeps a clone's large files."""
    # Its worktrees share it. Told as seen from the clone, or as a whole path.
    git_dir = clone / run_git(clone, "rev-parse", "--git-common-dir").decode().rstrip("\n")
    return Path(os.path.realpath(git_dir / "lfs" / "objects"))


def not_fetched(clone: Path, name: str) -> CheckpointError:
    """Say that only the pointer of a large file is there."""
    return CheckpointError(
        f"{name} is a git-lfs pointer and its content was not fetched; run `git lfs pull` in"
        f" {clone}"
    )
