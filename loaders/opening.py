"""Opens the repository that a name means, wherever it lies: hub, cache, folder or git clone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from loaders.cache import find_built
from loaders.errors import HubError
from loaders.hub import CachedFiles, HubFiles, default_hub_cache, is_cached
from loaders.local_repository import CloneFiles, FolderFiles

if TYPE_CHECKING:
    from pathlib import Path

    from loaders.repository import RepositoryFiles
    from loaders.spec import VariantSpec

log = structlog.get_logger(__name__)


def open_repository(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> RepositoryFiles:
    """Open a variant's repository to look at it, without downloading anything.

    Where the hub cannot be reached, its cache on this machine answers, with a warning. Raises
    RepositoryNotFoundError, or HubError where there is nothing cached either.
    """
    if spec.folder is not None:
        is_clone = (spec.folder / ".git").exists()
        return CloneFiles(spec.folder) if is_clone else FolderFiles(spec.folder)
    built_in = find_built(spec.repo, cache_dir)
    hub_cache = built_in or cache_dir or default_hub_cache()
    if built_in is not None or local_files_only:
        return CachedFiles(spec.repo, hub_cache)
    hub = HubFiles(spec.repo, token=token)
    try:
        hub.revisions()
    except HubError as error:
        if not is_cached(spec.repo, hub_cache):
            raise
        log.warning("hub_unreachable", repo=spec.repo, reason=str(error), using=str(hub_cache))
        return CachedFiles(spec.repo, hub_cache)
    return hub
