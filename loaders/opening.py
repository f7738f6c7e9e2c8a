"""Opens the repository that a name means, wherever it lies: hub, cache, folder or git clone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.cache import find_built
from loaders.hub import CachedFiles, CachedHubFiles, default_hub_cache
from loaders.local_repository import CloneFiles, FolderFiles
from loaders.repository import HUB_FAILURES

if TYPE_CHECKING:
    from pathlib import Path

    from loaders.repository import RepositoryFiles
    from loaders.spec import VariantSpec


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
        is_clone = (spec.folder / ".git").exists()
        return CloneFiles(spec.folder) if is_clone else FolderFiles(spec.folder)
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
