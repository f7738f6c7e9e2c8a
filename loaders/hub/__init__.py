"""The only place that talks to the hub, or reads the hub's cache."""

from loaders.hub.cached import CachedFiles, is_cached
from loaders.hub.fetching import (
    DEFAULT_REVISION,
    Snapshot,
    cached_revisions,
    default_hub_cache,
    fetch,
)
from loaders.hub.repository import HubFiles

__all__ = [
    "DEFAULT_REVISION",
    "CachedFiles",
    "HubFiles",
    "Snapshot",
    "cached_revisions",
    "default_hub_cache",
    "fetch",
    "is_cached",
]
