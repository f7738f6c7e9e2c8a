"""The only place that talks to the hub, or reads the hub's cache."""

from loaders.hub.fetching import (
    DEFAULT_REVISION,
    Snapshot,
    cached_revisions,
    download_folder,
    fetch,
)
from loaders.hub.probe import HubAnswer, download_bytes, probe_hub

__all__ = [
    "DEFAULT_REVISION",
    "HubAnswer",
    "Snapshot",
    "cached_revisions",
    "download_bytes",
    "download_folder",
    "fetch",
    "probe_hub",
]
