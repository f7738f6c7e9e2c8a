"""Brings one variant of a repository to this machine: one commit, one folder, one manifest.

Everything after it reads that folder only. What to fetch is told by `loaders.selection`, how by
`loaders.download`; here the hub is asked what there is, and the cache used where it cannot be.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from huggingface_hub import constants

from loaders.cache import find_built
from loaders.cached_repository import CachedRepository, cache_errors, free_bytes
from loaders.checkpoint import INDEX_FILE
from loaders.download import Digest, Patience, damaged, download_files, needed_files
from loaders.errors import CheckpointError, HubError, RepositoryNotFoundError, RevisionNotFoundError
from loaders.hub.access import no_revision
from loaders.hub.repository import HubFiles
from loaders.hub.snapshots import (
    DEFAULT_REVISION,
    Snapshot,
    find_cached,
    shards_here,
    shards_in,
)
from loaders.hub.transport import HubSource
from loaders.repository import HUB_FAILURES
from loaders.selection import by_quantisation, tell_gguf_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loaders.download_progress import DownloadProgress
    from loaders.errors import LoadError
    from loaders.repository import RepositoryFile, Revision
    from loaders.spec import VariantSpec

log = structlog.get_logger(__name__)


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
    asked, and the cache used, with a warning, when it fails or no longer gives what is whole there:
    an expired token or a branch that was removed keeps nothing from starting again. Raises
    RepositoryNotFoundError, RevisionNotFoundError (naming the revisions there are),
    UnsafeCheckpointError, CheckpointError, CacheError or HubError.

    on_percent: told how much of a download is done; possibly by several threads.
    """
    built_in = find_built(spec.repo, cache_dir)
    access = HubAccess(cache_dir=built_in or cache_dir or default_hub_cache(), token=token)
    if on_percent is not None:
        access = replace(access, tell=lambda progress: on_percent(progress.percent))
    if built_in is None and not local_files_only:
        try:
            return download(spec, access)
        except (*HUB_FAILURES, RevisionNotFoundError) as error:
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
    shards = shards_here(listing, spec, cached, commit)
    if shards is None:
        shards = shards_in(_read_index(hub, revision, listing))
    selection, files = needed_files(listing, spec, shards)
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
        by_file = by_quantisation(spec, [file.path for file in listing])
        if by_file is None:
            hint = tell_gguf_files(file.path for file in listing)
            raise RevisionNotFoundError(f"{error}{hint}") from error
        return by_file, revision, listing


def _read_index(hub: HubFiles, revision: Revision, listing: Sequence[RepositoryFile]) -> bytes:
    """Read the index ahead of the files, whose number and sizes it tells."""
    file = next(file for file in listing if file.path == INDEX_FILE)
    digest = Digest(file)
    for _ in range(2):  # a damaged one once more, as any file
        text = hub.read(revision, file.path)
        digest = Digest(file)
        digest.update(text)
        if digest.fits:
            return text
    raise damaged(file, digest, hub.name)


def _tell_waiting(spec: VariantSpec, access: HubAccess) -> None:
    log.info("waiting for another process that downloads", repo=spec.repo)
    access.tell_waiting()


def _refuse_part(spec: VariantSpec, cache_dir: Path, *, reason: str = "") -> None:
    """Say so where the cache knows the revision, and holds only a part of what it needs."""
    cached = CachedRepository(cache_dir, spec.repo)
    if cached.commit_of(spec.revision or DEFAULT_REVISION) is not None:
        raise CheckpointError(
            f"{reason}{spec} is in the cache ({cache_dir}), but not with all files that it needs;"
            f" allow downloads, or run `tetrad download {spec}`"
        )


def _cached_instead(spec: VariantSpec, cache_dir: Path, error: LoadError) -> Snapshot:
    """Use what an earlier download left when the hub does not give it now."""
    found = find_cached(spec, cache_dir)
    if found is not None:
        log.warning("hub_unreachable", repo=spec.repo, reason=str(error), using=found.commit)
        return found
    if not isinstance(error, HubError):
        raise error  # a refusal, which says what to do
    _refuse_part(spec, cache_dir, reason=f"{error}; ")
    if known := cached_revisions(spec.repo, cache_dir):
        revision = spec.revision or DEFAULT_REVISION
        raise no_revision(spec.repo, revision, known, f"{error}; cached are") from error
    raise HubError(f"{error}; it is not cached: name a local folder, or try again") from error
