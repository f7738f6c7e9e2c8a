"""The only place that talks to the hub."""

import os

# The hub's client tells the hub who runs it before the first request; nothing but what is asked for
# shall leave this machine. It reads the variable while it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from loaders.repository.hub.access import no_revision
from loaders.repository.hub.cached import CachedFiles
from loaders.repository.hub.fallback import CachedHubFiles
from loaders.repository.hub.fetching import HubAccess, default_hub_cache, download
from loaders.repository.hub.probe import HubProbe, probe_hub
from loaders.repository.hub.snapshots import discard, find_cached, verify

__all__ = [
    "CachedFiles",
    "CachedHubFiles",
    "HubAccess",
    "HubProbe",
    "default_hub_cache",
    "discard",
    "download",
    "find_cached",
    "no_revision",
    "probe_hub",
    "verify",
]
