"""The only place that talks to the hub, or reads the hub's cache."""

import os

# The hub's client tells the hub who runs it before the first request; nothing but what is asked for
# shall leave this machine. It reads the variable while it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from loaders.hub.cached import CachedFiles, is_cached
from loaders.hub.fallback import CachedHubFiles
from loaders.hub.fetching import (
    HubAccess,
    cached_revisions,
    default_hub_cache,
    download,
    fetch,
)
from loaders.hub.probe import HubAnswer, probe_hub
from loaders.hub.repository import HubFiles
from loaders.hub.snapshots import DEFAULT_REVISION, Snapshot, discard, find_cached, verify

__all__ = [
    "DEFAULT_REVISION",
    "CachedFiles",
    "CachedHubFiles",
    "HubAccess",
    "HubAnswer",
    "HubFiles",
    "Snapshot",
    "cached_revisions",
    "default_hub_cache",
    "discard",
    "download",
    "fetch",
    "find_cached",
    "is_cached",
    "probe_hub",
    "verify",
]
