"""The only place that talks to the hub, or reads the hub's cache."""

from loaders.hub.cached import CachedFiles, is_cached
from loaders.hub.fetching import (
    DEFAULT_REVISION,
    Snapshot,
    cached_revisions,
    default_hub_cache,
    fetch,
)
from loaders.hub.probe import HubAnswer, download_bytes, probe_hub
from loaders.hub.repository import HubFiles

__all__ = [
    "DEFAULT_REVISION",
    "CachedFiles",
    "HubAnswer",
    "HubFiles",
    "Snapshot",
    "cached_revisions",
    "default_hub_cache",
    "download_bytes",
    "fetch",
    "is_cached",
    "probe_hub",
]
