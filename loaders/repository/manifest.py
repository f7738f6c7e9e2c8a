"""What a snapshot is made of: every file of one commit with its size and sha256.

Written once all files have been checked, beside the snapshot in the cache, so that a commit is
known to be whole without a hub and can be checked again at any time. It also keeps the hub's
listing of the commit: offline, only that tells which files a variant would need.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loaders.errors import LoadError
from loaders.repository.protocol import RepositoryFile, checked_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_VERSION = 1
_MAX_BYTES = 64_000_000
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file that was compared with the hub's hash when it came."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One commit of a repository, as far as it lies in a cache."""

    repo: str
    commit: str
    endpoint: str  # where the files came from
    created: str  # ISO 8601, UTC
    listing: tuple[RepositoryFile, ...]  # of the whole commit, as the hub tells it
    files: Mapping[str, CheckedFile]  # those that are here


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what its manifest says."""

    path: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None where none can be used, so that files are checked anew."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        value = json.loads(path.read_bytes())
        if value["version"] != _VERSION:
            return None
        return Manifest(
            repo=str(value["repo"]),
            commit=str(value["commit"]),
            endpoint=str(value["endpoint"]),
            created=str(value["created"]),
            listing=tuple(RepositoryFile(**entry) for entry in value["listing"]),
            files={name: read_checked_file(name, entry) for name, entry in value["files"].items()},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, LoadError):
        return None


def read_checked_file(path: str, entry: Any) -> CheckedFile:
    """Read one file's entry; ValueError or LoadError where it makes no sense."""
    checked_path(path)
    size, sha256 = entry["num_bytes"], entry["sha256"]
    if type(size) is not int or size < 0 or not SHA256.fullmatch(sha256):
        raise ValueError(f"the entry of {path} is damaged")
    return CheckedFile(num_bytes=size, sha256=sha256)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    value = {"version": _VERSION, **asdict(manifest)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by new content; after a crash it holds the old or the new, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would lock a shared cache's other users out
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def find_damage(folder: Path, files: Mapping[str, CheckedFile]) -> Sequence[Damage]:
    """Compare every file of a folder with its entry; reads all of them."""
    return [
        Damage(path, f"{expected.num_bytes} bytes with sha256 {expected.sha256}", found)
        for path, expected in sorted(files.items())
        if (found := _difference(folder / path, expected)) is not None
    ]


def sha256_of_file(path: Path) -> str:
    """Hash a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(path: Path, expected: CheckedFile) -> str | None:
    try:
        if path.exists() and not path.is_file():
            return "no plain file"
        size = path.stat().st_size
        if size != expected.num_bytes:
            return f"{size} bytes"
        sha256 = sha256_of_file(path)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None if sha256 == expected.sha256 else f"sha256 {sha256}"
