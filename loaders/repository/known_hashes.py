"""Which hashes are known of a variant's files, and what mends a file that differs.

    the hub's cache, a mirror, the demo    the manifest; else the hub's listing, a mirror's list, or
                                           the name of the blob, which is its hash
    a git clone                            the commit's ids, and git-lfs pointers for large files
    a folder filled by the hub's client    its notes on each file (`hf download --local-dir`)
    any folder                             SHA256SUMS, as `sha256sum` writes it

Nothing is hashed here: `loaders.repository.verification` compares.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loaders.cache import BUILT_MARK
from loaders.errors import CheckpointError
from loaders.repository.cache_layout import CachedRepository
from loaders.repository.git_clone import MAX_POINTER_BYTES, list_blobs
from loaders.repository.hub import default_hub_cache
from loaders.repository.local import read_pointers
from loaders.repository.mirror import MIRROR_FILE, read_mirror
from loaders.repository.protocol import RepositoryFile, is_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from loaders.repository.manifest import CheckedFile
    from loaders.repository.snapshot import Snapshot
    from loaders.repository.spec import VariantSpec

SUMS_FILE = "SHA256SUMS"
_SUM = re.compile(r"\\?([0-9a-f]{64}) [ *](?:\./)?(.+)")
_MAX_SUMS_BYTES = 4_000_000
_NOTES = ".cache/huggingface/download"
_NOTE_ENDING = ".metadata"
_MAX_NOTE_BYTES = 1024
_MAX_NOTES = 20_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_ID = re.compile(r"[0-9a-f]{40}")


def _no_remedy(path: str) -> str:
    return f"replace {path}"


@dataclass(frozen=True, slots=True)
class KnownHashes:
    """What a variant's files should be."""

    files: Mapping[str, RepositoryFile]  # by their paths in the snapshot's folder
    # Whether people work in the folder: a small file that differs was edited, or is damaged.
    may_be_edited: bool = False
    remedy: Callable[[str], str] = field(default=_no_remedy)  # what to do about a path, in words


def known_hashes(spec: VariantSpec, snapshot: Snapshot) -> KnownHashes:
    """Gather what is known of a snapshot's files; empty for a folder that says nothing.

    Raises CheckpointError where a git clone cannot be read.
    """
    if snapshot.clone is not None and snapshot.commit is not None:
        return _of_clone(snapshot, snapshot.clone, snapshot.commit)
    if _is_in_cache(snapshot.folder):
        return _of_cache(spec, snapshot.folder)
    return _of_folder(snapshot.folder)


# The hub's cache, and what lies on this machine like it


def _is_in_cache(folder: Path) -> bool:
    repository = folder.parent.parent.name
    is_there = folder.parent.name == "snapshots" and repository.startswith("models--")
    return is_there and is_commit(folder.name)


def _of_cache(spec: VariantSpec, folder: Path) -> KnownHashes:
    cached, commit = CachedRepository.of_snapshot(folder), folder.name
    here = {file.path: file for file in cached.files(commit)}
    files = {path: file for path, file in here.items() if file.sha256 or file.blob_id}
    checked = _mirrored(cached, commit)
    if (manifest := cached.manifest(commit)) is not None:
        files |= {file.path: file for file in manifest.listing if file.path in here}
        checked |= manifest.files
    files |= {
        path: RepositoryFile(path, entry.num_bytes, sha256=entry.sha256, blob_id=None)
        for path, entry in checked.items()
    }
    return KnownHashes(files, remedy=lambda _: _cache_remedy(spec, cached))


def _mirrored(cached: CachedRepository, commit: str) -> dict[str, CheckedFile]:
    """Return what a mirror's list says of a commit; nothing where the cache is no mirror."""
    if not (cached.cache_dir / MIRROR_FILE).is_file():
        return {}
    try:
        variants = read_mirror(cached.cache_dir)
    except CheckpointError:
        return {}
    found: dict[str, CheckedFile] = {}
    for variant in variants:
        if (variant.repo, variant.commit) == (cached.repo, commit):
            found |= variant.files
    return found


def _cache_remedy(spec: VariantSpec, cached: CachedRepository) -> str:
    if (cached.folder / BUILT_MARK).is_file():
        return f"remove {cached.folder}, and build it again (`tetrad demo` builds the demo)"
    name = cached.repo if spec.folder is not None else spec
    is_default = cached.cache_dir == default_hub_cache()
    where = "" if is_default else f" --cache-dir {cached.cache_dir}"
    return f"fetch it again with `tetrad download {name} --verify{where}`"


# A git clone


def _of_clone(snapshot: Snapshot, clone: Path, commit: str) -> KnownHashes:
    # What a partial clone lacks lies in no folder either.
    blobs = {p: b for p, b in list_blobs(clone, commit).items() if b.num_bytes is not None}
    small = {b.name for b in blobs.values() if (b.num_bytes or 0) <= MAX_POINTER_BYTES}
    pointers = read_pointers(clone, small)
    files: dict[str, RepositoryFile] = {}
    for path, blob in blobs.items():
        pointer = pointers.get(blob.name)
        files[path] = RepositoryFile(
            path,
            pointer.num_bytes if pointer else int(blob.num_bytes or 0),
            sha256=pointer.sha256 if pointer else None,
            blob_id=blob.name,
        )
    if snapshot.folder == clone:
        return KnownHashes(files, may_be_edited=True, remedy=lambda p: _clone_remedy(clone, p))
    return KnownHashes(files, remedy=lambda path: _export_remedy(snapshot.folder, clone, path))


def _clone_remedy(clone: Path, path: str) -> str:
    return (
        f"restore it with `git -C {clone} checkout HEAD -- {path}` (where git-lfs keeps it, remove"
        " it before and run `git lfs fetch`), or commit it if the change is meant"
    )


def _export_remedy(folder: Path, clone: Path, path: str) -> str:
    if (folder / path).is_symlink():
        return f"remove {(folder / path).resolve()} and run `git -C {clone} lfs fetch --all`"
    return f"remove {folder}, which is written anew from {clone}"


# A plain folder


def _of_folder(folder: Path) -> KnownHashes:
    if sums := _read_sums(folder):
        remedy = f"copy it here again, or correct {folder / SUMS_FILE} if the change is meant"
        return KnownHashes(sums, remedy=lambda _: remedy)
    return KnownHashes(
        _read_notes(folder),
        may_be_edited=True,
        remedy=lambda path: (
            f"remove it and fetch it again (`hf download`), or remove"
            f" {folder / _NOTES / path}{_NOTE_ENDING} if the change is meant"
        ),
    )


def _read_sums(folder: Path) -> dict[str, RepositoryFile]:
    text = _read_regular(folder / SUMS_FILE, _MAX_SUMS_BYTES) or ""
    found = (_SUM.fullmatch(line) for line in text.splitlines())
    return _existing(folder, {match[2]: match[1] for match in found if match})


def _read_notes(folder: Path) -> dict[str, RepositoryFile]:
    """Read what the hub's client wrote of each file: the commit, the etag, the time."""
    notes = folder / _NOTES
    etags: dict[str, str] = {}
    for number, note in enumerate(notes.rglob(f"*{_NOTE_ENDING}")):
        if number >= _MAX_NOTES:
            break
        lines = (_read_regular(note, _MAX_NOTE_BYTES) or "").splitlines()
        if len(lines) >= 2:
            path = note.relative_to(notes).as_posix().removesuffix(_NOTE_ENDING)
            etags[path] = lines[1].strip()
    return _existing(folder, etags)


def _existing(folder: Path, hashes: Mapping[str, str]) -> dict[str, RepositoryFile]:
    """Make entries of those whose files are there, with the sizes that they have."""
    return {
        path: RepositoryFile(
            path,
            (folder / path).stat().st_size,
            sha256=name if _SHA256.fullmatch(name) else None,
            blob_id=name if _BLOB_ID.fullmatch(name) else None,
        )
        for path, name in hashes.items()
        if (_SHA256.fullmatch(name) or _BLOB_ID.fullmatch(name)) and (folder / path).is_file()
    }


def _read_regular(path: Path, max_bytes: int) -> str | None:
    """Read a text file of a size that makes sense; None for anything else."""
    try:
        if not path.is_file() or path.stat().st_size > max_bytes:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
