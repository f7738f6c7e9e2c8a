"""The hub with its cache on this machine behind it, for when the hub fails.

Whoever asks several questions starts again with the cache, so that nothing of two states is mixed:
the hub may know a newer commit than the cache holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from loaders.repository.cache_layout import CachedRepository
from loaders.repository.hub.cached import CachedFiles
from loaders.repository.hub.repository import HubFiles

if TYPE_CHECKING:
    from pathlib import Path

    from loaders.errors import LoadError

log = structlog.get_logger(__name__)


class CachedHubFiles(HubFiles):
    """One repository of the hub that has a substitute (`repository.protocol.Replaceable`)."""

    def __init__(self, repo: str, *, cache_dir: Path, token: str | None = None) -> None:
        super().__init__(repo, token=token)
        self._cache_dir = cache_dir

    def substitute(self, error: LoadError) -> CachedFiles | None:
        """Return what the cache holds, with a warning; None where it holds nothing."""
        if not CachedRepository(self._cache_dir, self.name).is_cached():
            return None
        log.warning(
            "hub_unreachable", repo=self.name, reason=str(error), using=str(self._cache_dir)
        )
        return CachedFiles(self.name, self._cache_dir)
