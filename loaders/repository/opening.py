"""Opens what a name means, wherever it lies: a folder, a git clone, the hub or its cache here.

`open_repository` opens a repository to look at it: nothing is downloaded. `open_snapshot` returns
the folder of one variant's files, with what is missing downloaded first. Both decide here where to
look; how the files of each kind are reached is `local`'s, `git_clone`'s and `hub`'s.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from loaders.cache import default_cache_dir, find_built
from loaders.checkpoint.files import read_named
from loaders.errors import CheckpointError, HubError, RepositoryNotFoundError, RevisionNotFoundError
from loaders.gguf.parts import is_gguf
from loaders.repository.cache_layout import CachedRepository
from loaders.repository.git_clone import large_file_store, list_blobs, open_clone
from loaders.repository.hub import (
    CachedFiles,
    CachedHubFiles,
    HubAccess,
    default_hub_cache,
    download,
    find_cached,
    no_revision,
)
from loaders.repository.links import check_files
from loaders.repository.local import CloneFiles, FolderFiles
from loaders.repository.local_files import list_paths, no_revision_in
from loaders.repository.protocol import DEFAULT_BRANCH, HUB_FAILURES
from loaders.repository.selection import by_quantisation, describe_gguf_files, find_local
from loaders.repository.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loaders.errors import LoadError
    from loaders.repository.protocol import RepositoryFiles
    from loaders.repository.spec import VariantSpec

log = structlog.get_logger(__name__)


def open_repository(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> RepositoryFiles:
    """Open a variant's repository to look at it, without downloading anything.

    Where the hub fails or refuses, its cache on this machine answers, with a warning. Raises
    RepositoryNotFoundError or HubError where there is nothing cached either.
    """
    if spec.folder is not None:
        return CloneFiles(spec.folder) if _is_clone(spec.folder) else FolderFiles(spec.folder)
    built_in = find_built(spec.repo, cache_dir)
    hub_cache = built_in or cache_dir or default_hub_cache()
    if built_in is not None or local_files_only:
        return CachedFiles(spec.repo, hub_cache)
    hub = CachedHubFiles(spec.repo, cache_dir=hub_cache, token=token)
    try:
        hub.revisions()
    except HUB_FAILURES as error:
        cached = hub.substitute(error)
        if cached is None:
            raise
        return cached
    return hub


def open_snapshot(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Snapshot:
    """Return the folder of a variant's files, downloading what is missing.

    A repository that was built on this machine (the demo) is used as it is. For others the hub is
    asked, and the cache used, with a warning, when it fails or no longer gives what is whole there:
    an expired token or a branch that was removed keeps nothing from starting again. Raises
    RepositoryNotFoundError, RevisionNotFoundError (naming the revisions there are),
    UnsafeCheckpointError, CheckpointError, CacheError or HubError.

    on_progress: called with the percentage of a download that is done; possibly by several threads.
    """
    snapshot = _find_snapshot(
        spec,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        on_progress=on_progress,
    )
    clone = spec.folder if spec.folder is not None and _is_clone(spec.folder) else None
    store = None if clone is None else large_file_store(clone)
    check_files(snapshot.folder, file=snapshot.file, store=store)
    return snapshot


def _find_snapshot(
    spec: VariantSpec,
    *,
    cache_dir: Path | None,
    token: str | None,
    local_files_only: bool,
    on_progress: Callable[[float], None] | None,
) -> Snapshot:
    if spec.folder is not None:
        return _open_local(spec, spec.folder, cache_dir or default_cache_dir())
    built_in = find_built(spec.repo, cache_dir)
    hub_cache = built_in or cache_dir or default_hub_cache()
    if built_in is not None or local_files_only:
        return _open_cached(spec, hub_cache, is_built=built_in is not None)
    access = HubAccess(cache_dir=hub_cache, token=token)
    if on_progress is not None:
        access = replace(access, on_progress=lambda progress: on_progress(progress.percent))
    try:
        return download(spec, access)
    except (*HUB_FAILURES, RevisionNotFoundError) as error:
        return _open_cached_after(error, spec, hub_cache)


# A folder or clone on this machine


def _open_local(spec: VariantSpec, folder: Path, cache_dir: Path) -> Snapshot:
    """Return the folder of a local variant, at the branch asked for where it is a git clone.

    What is no revision may be the quantisation of a GGUF file, as on a hub. Raises
    RevisionNotFoundError where it is neither.
    """
    open_named = partial(open_clone, cache_dir=cache_dir) if _is_clone(folder) else _open_folder
    try:
        return open_named(folder, spec)
    except RevisionNotFoundError as error:
        paths = list(list_blobs(folder, "HEAD")) if _is_clone(folder) else list_paths(folder)
        named = by_quantisation(spec, paths)
        if named is None:
            raise RevisionNotFoundError(f"{error}{describe_gguf_files(paths)}") from error
        return open_named(folder, named)


def _is_clone(folder: Path) -> bool:
    return (folder / ".git").exists()


def _open_folder(folder: Path, spec: VariantSpec) -> Snapshot:
    if spec.revision is not None:
        raise no_revision_in(folder, spec.revision)
    file = spec.file
    if file is None and _is_bare(folder):
        found = find_local(list_paths(folder), spec, partial(read_named, folder))
        file = found.file if found else None
    return Snapshot(folder=folder, commit=None, file=file)


def _is_bare(folder: Path) -> bool:
    """Whether no weights lie in the folder itself, so that it is worth looking below it."""
    return not any(path.suffix == ".safetensors" or is_gguf(path.name) for path in folder.iterdir())


# The hub's cache on this machine


def _open_cached(spec: VariantSpec, cache_dir: Path, *, is_built: bool) -> Snapshot:
    """Use what is in a cache, where the hub is not to be asked."""
    if (found := find_cached(spec, cache_dir)) is not None:
        return found
    cached = CachedRepository(cache_dir, spec.repo)
    if is_built and cached.commit_of(spec.revision or DEFAULT_BRANCH) is not None:
        raise CheckpointError(
            f"{spec} was built on this machine ({cached.folder}), and files of it are missing or of"
            " another size now; remove that folder and build it again (`tetrad demo`)"
        )
    _refuse_part(spec, cached)
    if known := sorted(cached.revisions()):
        verb = "built on this machine are" if is_built else "in the cache it has"
        raise no_revision(spec.repo, spec.revision or DEFAULT_BRANCH, known, verb)
    raise RepositoryNotFoundError(
        f"{spec.repo} is not in the cache ({cache_dir}) and downloads are off; check the"
        " name, or allow downloads"
    )


def _open_cached_after(error: LoadError, spec: VariantSpec, cache_dir: Path) -> Snapshot:
    """Use what an earlier download left, where the hub does not give it now."""
    if (found := find_cached(spec, cache_dir)) is not None:
        log.warning("hub_unreachable", repo=spec.repo, reason=str(error), using=found.commit)
        return found
    if not isinstance(error, HubError):
        raise error  # a refusal, which says what to do
    cached = CachedRepository(cache_dir, spec.repo)
    _refuse_part(spec, cached, reason=f"{error}; ")
    if known := sorted(cached.revisions()):
        revision = spec.revision or DEFAULT_BRANCH
        raise no_revision(spec.repo, revision, known, f"{error}; cached are") from error
    raise HubError(f"{error}; it is not cached: name a local folder, or try again") from error


def _refuse_part(spec: VariantSpec, cached: CachedRepository, *, reason: str = "") -> None:
    """Say so where the cache knows the revision, and holds only a part of what it needs."""
    if cached.commit_of(spec.revision or DEFAULT_BRANCH) is not None:
        raise CheckpointError(
            f"{reason}{spec} is in the cache ({cached.cache_dir}), but not with all files that it"
            f" needs; allow downloads, or run `tetrad download {spec}`"
        )
