"""Brings one variant of a repository to this machine: one commit, one folder, one manifest.

Everything after it reads that folder only. `loaders.repository.selection` decides what to fetch,
`loaders.repository.download` how; here the hub is asked what there is, and the cache used where it
cannot be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from huggingface_hub import constants

from loaders.checkpoint.files import parse_json, read_named
from loaders.errors import RevisionNotFoundError
from loaders.repository.cache_layout import CachedRepository, cache_errors, free_disk_bytes
from loaders.repository.download import Digest, RetryPolicy, damaged, download_files, needed_files
from loaders.repository.hub.repository import HubFiles
from loaders.repository.hub.transport import HubFileSource
from loaders.repository.protocol import DEFAULT_BRANCH
from loaders.repository.selection import by_quantisation, describe_gguf_files
from loaders.repository.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loaders.repository.download_progress import DownloadProgress
    from loaders.repository.protocol import RepositoryFile, Revision
    from loaders.repository.spec import VariantSpec

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """How the hub and its cache are reached, and who hears of it meanwhile."""

    cache_dir: Path
    token: str | None = None  # None: the one that the hub's client is logged in with
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    on_progress: Callable[[DownloadProgress], None] = lambda _: None
    on_wait: Callable[[], None] = lambda: None  # another process is at it
    free: Callable[[Path], int] = free_disk_bytes


def default_hub_cache() -> Path:
    """Return the hub client's own cache folder (HF_HOME, HF_HUB_CACHE)."""
    return Path(constants.HF_HUB_CACHE)


def download(spec: VariantSpec, access: HubAccess) -> Snapshot:
    """Fetch what a variant's commit on the hub lacks here; raises as `fetch` does.

    One process at a time fetches a repository; a second one waits, and then finds all of it.
    """
    hub = HubFiles(spec.repo, token=access.token)
    spec, revision, listing = _look_up(spec, hub)
    commit = str(revision.commit)
    cached = CachedRepository(access.cache_dir, spec.repo)
    read = partial(_read_ahead, hub, revision, listing, cached)
    selection, files = needed_files(listing, spec, read)
    with cache_errors(access.cache_dir):
        if not cached.is_whole(commit, [file.path for file in files]):
            with cached.lock(partial(_note_wait, spec, access)):
                log.info("downloading", repo=spec.repo, revision=spec.revision, commit=commit)
                checked = _download(files, cached, commit, access)
                cached.publish(commit, listing, checked, constants.ENDPOINT)
        cached.point(revision.name or DEFAULT_BRANCH, commit)
    return Snapshot(folder=cached.snapshot(commit), commit=commit, file=selection.file)


def _download(
    files: Sequence[RepositoryFile], cached: CachedRepository, commit: str, access: HubAccess
) -> dict[RepositoryFile, str]:
    for file in files:
        if file.num_bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            log.warning("large_file", path=file.path, reason="above 50 GB")
    return download_files(
        files,
        HubFileSource(cached.repo, commit, access.token),
        cached,
        commit,
        retry_policy=access.retry_policy,
        on_progress=access.on_progress,
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
            hint = describe_gguf_files(file.path for file in listing)
            raise RevisionNotFoundError(f"{error}{hint}") from error
        return by_file, revision, listing


def _read_ahead(
    hub: HubFiles,
    revision: Revision,
    listing: Sequence[RepositoryFile],
    cached: CachedRepository,
    path: str,
) -> Mapping[str, Any]:
    """Read what names the weights (an index, settings) ahead of all files: here, or on the hub."""
    commit = str(revision.commit)
    if cached.is_whole(commit, [path]):
        return read_named(cached.snapshot(commit), path)
    file = next(file for file in listing if file.path == path)
    digest = Digest(file)
    for _ in range(2):  # a damaged one once more, as any file
        text = hub.read(revision, file.path)
        digest = Digest(file)
        digest.update(text)
        if digest.fits:
            return parse_json(path, text)
    raise damaged(file, digest, hub.name)


def _note_wait(spec: VariantSpec, access: HubAccess) -> None:
    log.info("waiting_for_other_download", repo=spec.repo)
    access.on_wait()
