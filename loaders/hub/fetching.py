"""Brings one variant of a repository to this machine: one commit, one folder, one manifest.

Everything after it reads that folder only. What to fetch is told by `loaders.selection`, how by
`loaders.download`; here the hub is asked what there is, and the cache used where it cannot be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from loaders.cache import find_built
from loaders.cached_repository import CachedRepository, cache_errors, free_bytes
from loaders.checkpoint import INDEX_FILE
from loaders.download import Digest, Patience, damaged, download_files, needed_files
from loaders.errors import CheckpointError, HubError, RepositoryNotFoundError, RevisionNotFoundError
from loaders.gguf_parts import group_parts
from loaders.hub.access import no_revision
from loaders.hub.repository import HubFiles
from loaders.hub.transport import HubSource
from loaders.manifest import Damage, find_damage
from loaders.selection import find_quantisation, has_index, select_files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from loaders.download_progress import DownloadProgress
    from loaders.repository import RepositoryFile, Revision
    from loaders.selection import Selection
    from loaders.spec import VariantSpec

log = structlog.get_logger(__name__)

DEFAULT_REVISION = "main"
_IN_WEIGHT_MAP = "weight_map"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository, in a folder of its own."""

    folder: Path
    commit: str | None  # None for a plain local folder
    file: str | None = None  # of a GGUF variant: its file in the folder, the first where split


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """How the hub and its cache are reached, and who is told meanwhile."""

    cache_dir: Path
    token: str | None = None  # None: the one that the hub's client is logged in with
    patience: Patience = field(default_factory=Patience)
    tell: Callable[[DownloadProgress], None] = lambda _: None
    tell_waiting: Callable[[], None] = lambda: None  # another process is at it
    free: Callable[[Path], int] = free_bytes


def fetch(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    on_percent: Callable[[float], None] | None = None,
) -> Snapshot:
    """Return the folder of a variant's files, downloading what is missing.

    A repository that was built on this machine (the demo) is used as it is. For others the hub is
    asked, and the cache used when it cannot be reached. Raises RepositoryNotFoundError,
    RevisionNotFoundError (naming the revisions there are), UnsafeCheckpointError, CheckpointError,
    CacheError or HubError.

    on_percent: told how much of a download is done; possibly by several threads.
    """
    built_in = find_built(spec.repo, cache_dir)
    access = HubAccess(cache_dir=built_in or cache_dir or default_hub_cache(), token=token)
    if on_percent is not None:
        access = replace(access, tell=lambda progress: on_percent(progress.percent))
    if built_in is None and not local_files_only:
        try:
            return download(spec, access)
        except HubError as error:
            return _cached_instead(spec, access.cache_dir, error)
    if (found := find_cached(spec, access.cache_dir)) is not None:
        return found
    _refuse_part(spec, access.cache_dir)
    if known := cached_revisions(spec.repo, access.cache_dir):
        verb = "built on this machine are" if built_in else "in the cache it has"
        raise no_revision(spec.repo, spec.revision or DEFAULT_REVISION, known, verb)
    raise RepositoryNotFoundError(
        f"{spec.repo} is not in the cache ({access.cache_dir}) and downloads are off; check the"
        " name, or allow downloads"
    )


def default_hub_cache() -> Path:
    """Return the hub client's own cache folder (HF_HOME, HF_HUB_CACHE)."""
    return Path(constants.HF_HUB_CACHE)


def cached_revisions(repo: str, cache_dir: Path) -> list[str]:
    """List the branches and tags of a repository that a cache knows."""
    return CachedRepository(cache_dir, repo).revisions()


def download(spec: VariantSpec, access: HubAccess) -> Snapshot:
    """Fetch what a variant's commit on the hub lacks here; raises as `fetch` does.

    One process at a time fetches a repository; a second one waits, and then finds all of it.
    """
    hub = HubFiles(spec.repo, token=access.token)
    spec, revision, listing = _look_up(spec, hub)
    commit = str(revision.commit)
    cached = CachedRepository(access.cache_dir, spec.repo)
    read_index = partial(_read_index, hub, revision)
    selection, files = _needed(listing, spec, cached, commit, read_index)
    with cache_errors(access.cache_dir):
        if not cached.is_whole(commit, [file.path for file in files]):
            with cached.lock(partial(_tell_waiting, spec, access)):
                log.info("downloading", repo=spec.repo, revision=spec.revision, commit=commit)
                checked = _download(files, cached, commit, access)
                cached.publish(commit, listing, checked, constants.ENDPOINT)
        cached.point(revision.name or DEFAULT_REVISION, commit)
    return Snapshot(folder=cached.snapshot(commit), commit=commit, file=selection.file)


def _download(
    files: Sequence[RepositoryFile], cached: CachedRepository, commit: str, access: HubAccess
) -> dict[RepositoryFile, str]:
    for file in files:
        if file.num_bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            log.warning("file that the hub may refuse", path=file.path, reason="above 50 GB")
    return download_files(
        files,
        HubSource(cached.repo, commit, access.token),
        cached,
        commit,
        patience=access.patience,
        tell=access.tell,
        free=access.free,
    )


def find_cached(spec: VariantSpec, cache_dir: Path) -> Snapshot | None:
    """Return a variant as far as the cache knows it; None where it is not there, or not whole."""
    cached = CachedRepository(cache_dir, spec.repo)
    commit = cached.commit_of(spec.revision or DEFAULT_REVISION)
    if commit is None and spec.revision is not None and spec.file is None:
        commit = cached.commit_of(DEFAULT_REVISION)
        spec = _by_quantisation(spec, _paths_here(cached, commit)) or spec
        commit = commit if spec.file is not None else None
    if commit is None or not cached.snapshot(commit).is_dir():
        return None
    manifest = cached.manifest(commit)
    if manifest is None:
        return _left_by_others(spec, cached, commit)
    folder = cached.snapshot(commit)
    if has_index([f.path for f in manifest.listing], spec) and not (folder / INDEX_FILE).is_file():
        return None
    selection, files = _needed(manifest.listing, spec, cached, commit, _no_index)
    if not cached.is_whole(commit, [file.path for file in files]):
        return None
    return Snapshot(folder=folder, commit=commit, file=selection.file)


def verify(snapshot: Snapshot) -> Sequence[Damage]:
    """Compare a downloaded snapshot with its manifest, byte by byte; return what differs.

    Raises CheckpointError where there is no manifest.
    """
    repository = snapshot.folder.parents[1]
    repo = repository.name.removeprefix("models--").replace("--", "/")
    cached = CachedRepository(repository.parent, repo)
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
        with cache_errors(cache_dir):
            CachedRepository(cache_dir, spec.repo).forget(
                snapshot.commit, [entry.path for entry in damage]
            )


def _look_up(
    spec: VariantSpec, hub: HubFiles
) -> tuple[VariantSpec, Revision, Sequence[RepositoryFile]]:
    """Resolve a variant on the hub: its revision, and the files there.

    Where no revision has the name, it may be the quantisation of a GGUF file.
    """
    try:
        revision = hub.find_revision(spec.revision)
        return spec, revision, hub.files(revision)
    except RevisionNotFoundError as error:
        if spec.file is not None or not hub.revisions():
            raise
        revision = hub.find_revision(None)
        listing = hub.files(revision)
        by_file = _by_quantisation(spec, [file.path for file in listing])
        if by_file is None:
            files = [parts.name for parts in group_parts(file.path for file in listing)]
            hint = f"; its GGUF files are {', '.join(files)}" if files else ""
            raise RevisionNotFoundError(f"{error}{hint}") from error
        return by_file, revision, listing


def _by_quantisation(spec: VariantSpec, paths: Collection[str]) -> VariantSpec | None:
    """Read a revision that does not exist as a quantisation, where a GGUF file has it."""
    file = find_quantisation(paths, str(spec.revision))
    return None if file is None else replace(spec, revision=None, file=file)


def _needed(
    listing: Sequence[RepositoryFile],
    spec: VariantSpec,
    cached: CachedRepository,
    commit: str,
    read_index: Callable[[RepositoryFile], bytes],
) -> tuple[Selection, tuple[RepositoryFile, ...]]:
    """Choose the files, looking into the index where there is one: here, else on the hub."""
    by_path = {file.path: file for file in listing}
    if not has_index(by_path, spec):
        return needed_files(listing, spec)
    here = cached.snapshot(commit) / INDEX_FILE
    is_here = cached.is_whole(commit, [INDEX_FILE])
    text = here.read_bytes() if is_here else read_index(by_path[INDEX_FILE])
    return needed_files(listing, spec, _shards_of(text))


def _no_index(_: RepositoryFile) -> bytes:
    raise CheckpointError(f"{INDEX_FILE} in the cache was never checked; allow downloads")


def _read_index(hub: HubFiles, revision: Revision, file: RepositoryFile) -> bytes:
    """Read the index ahead of the files, whose number and sizes it tells."""
    digest = Digest(file)
    for _ in range(2):  # a damaged one once more, as any file
        text = hub.read(revision, file.path)
        digest = Digest(file)
        digest.update(text)
        if digest.fits:
            return text
    raise damaged(file, digest, hub.name)


def _shards_of(index: bytes) -> frozenset[str]:
    try:
        weight_map = json.loads(index)[_IN_WEIGHT_MAP]
        return frozenset(str(name) for name in weight_map.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{INDEX_FILE} has no usable weight_map: {error}") from error


def _tell_waiting(spec: VariantSpec, access: HubAccess) -> None:
    log.info("waiting for another process that downloads", repo=spec.repo)
    access.tell_waiting()


def _paths_here(cached: CachedRepository, commit: str | None) -> list[str]:
    """List a commit's files: all where the hub's listing is kept, else those that are here."""
    if commit is None:
        return []
    if (manifest := cached.manifest(commit)) is not None:
        return [file.path for file in manifest.listing]
    folder = cached.snapshot(commit)
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _left_by_others(spec: VariantSpec, cached: CachedRepository, commit: str) -> Snapshot | None:
    """Use what the hub's own client downloaded, if all of it is here as far as that knows."""
    paths = _paths_here(cached, commit)
    folder = cached.snapshot(commit)
    if not any(path.endswith(".safetensors") or ".gguf" in path.lower() for path in paths):
        return None  # only looked at so far
    if has_index(paths, spec):
        selection = select_files(paths, spec, _shards_of((folder / INDEX_FILE).read_bytes()))
    else:
        selection = select_files(paths, spec)
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


def _refuse_part(spec: VariantSpec, cache_dir: Path, *, reason: str = "") -> None:
    """Say so where the cache knows the revision, and holds only a part of what it needs."""
    cached = CachedRepository(cache_dir, spec.repo)
    if cached.commit_of(spec.revision or DEFAULT_REVISION) is not None:
        raise CheckpointError(
            f"{reason}{spec} is in the cache ({cache_dir}), but not with all files that it needs;"
            f" allow downloads, or run `tetrad download {spec}`"
        )


def _cached_instead(spec: VariantSpec, cache_dir: Path, error: HubError) -> Snapshot:
    """Use what an earlier download left when the hub cannot be reached now."""
    found = find_cached(spec, cache_dir)
    if found is not None:
        log.warning("hub_unreachable", repo=spec.repo, reason=str(error), using=found.commit)
        return found
    _refuse_part(spec, cache_dir, reason=f"{error}; ")
    if known := cached_revisions(spec.repo, cache_dir):
        revision = spec.revision or DEFAULT_REVISION
        raise no_revision(spec.repo, revision, known, f"{error}; cached are") from error
    raise HubError(f"{error}; it is not cached: name a local folder, or try again") from error
