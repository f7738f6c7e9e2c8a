"""Variants in the hub's cache on this machine: found without a hub, whole or not, and checked.

Which files belong to one follows from the hub's listing, which is kept with every download
(`loaders.repository.manifest`). What the hub's own client fetched has none, and is taken as that
left it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from loaders.checkpoint.files import read_named
from loaders.errors import CheckpointError
from loaders.repository.cache_layout import CachedRepository, cache_errors
from loaders.repository.download import needed_files
from loaders.repository.links import check_link
from loaders.repository.manifest import Damage, find_damage
from loaders.repository.protocol import DEFAULT_BRANCH
from loaders.repository.selection import by_quantisation, select_files
from loaders.repository.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loaders.repository.spec import VariantSpec


def find_cached(spec: VariantSpec, cache_dir: Path) -> Snapshot | None:
    """Return a variant as far as the cache knows it; None where it is not there, or not whole."""
    cached = CachedRepository(cache_dir, spec.repo)
    commit = cached.commit_of(spec.revision or DEFAULT_BRANCH)
    if commit is None and spec.revision is not None and spec.file is None:
        commit = cached.commit_of(DEFAULT_BRANCH)
        spec = by_quantisation(spec, _paths_here(cached, commit)) or spec
        commit = commit if spec.file is not None else None
    if commit is None or not cached.has_snapshot(commit):
        return None
    manifest = cached.manifest(commit)
    if manifest is None:
        return _left_by_others(spec, cached, commit)
    try:
        selection, files = needed_files(manifest.listing, spec, partial(_read, cached, commit))
    except _NotHereError:
        return None
    if not cached.is_whole(commit, [file.path for file in files]):
        return None
    return Snapshot(folder=cached.snapshot(commit), commit=commit, file=selection.file)


def verify(snapshot: Snapshot) -> Sequence[Damage]:
    """Compare a downloaded snapshot with its manifest, byte by byte; return what differs.

    Raises CheckpointError where there is no manifest.
    """
    cached = CachedRepository.of_snapshot(snapshot.folder)
    manifest = cached.manifest(snapshot.commit) if snapshot.commit else None
    if manifest is None:
        raise CheckpointError(
            f"{snapshot.folder} has no manifest to be compared with; `tetrad download` writes one"
        )
    return find_damage(snapshot.folder, manifest.files)


def discard(
    spec: VariantSpec, snapshot: Snapshot, damage: Sequence[Damage], cache_dir: Path
) -> None:
    """Remove damaged files from the cache, so that the next download brings them again."""
    if snapshot.commit is not None:
        cached = CachedRepository(cache_dir, spec.repo)
        with cache_errors(cache_dir), cached.lock(lambda: None):
            cached.forget(snapshot.commit, [entry.path for entry in damage])


class _NotHereError(Exception):
    """What names the weights was not fetched yet."""


def _read(cached: CachedRepository, commit: str, path: str) -> Mapping[str, Any]:
    if not cached.is_whole(commit, [path]):
        raise _NotHereError(path)
    return _read_linked(cached.snapshot(commit), path)


def _read_linked(folder: Path, path: str) -> Mapping[str, Any]:
    check_link(folder, path)
    return read_named(folder, path)


def _paths_here(cached: CachedRepository, commit: str | None) -> list[str]:
    """List a commit's files: all where the hub's listing is kept, else those that are here."""
    if commit is None:
        return []
    if (manifest := cached.manifest(commit)) is not None:
        return [file.path for file in manifest.listing]
    return cached.paths(commit)


def _left_by_others(spec: VariantSpec, cached: CachedRepository, commit: str) -> Snapshot | None:
    """Use what the hub's own client downloaded, if all of it is here as far as that knows."""
    paths = _paths_here(cached, commit)
    folder = cached.snapshot(commit)
    if not any(path.endswith(".safetensors") or ".gguf" in path.lower() for path in paths):
        return None  # only looked at so far
    selection = select_files(paths, spec, lambda path: _read_linked(folder, path))
    try:
        snapshot_download(
            cached.repo,
            revision=commit,
            cache_dir=cached.cache_dir,
            local_files_only=True,
            allow_patterns=list(selection.paths),
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Snapshot(folder=folder, commit=commit, file=selection.file)
