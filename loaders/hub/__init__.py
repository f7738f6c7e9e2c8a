"""The only place that talks to the hub, or reads the hub's cache."""

from loaders.hub.fetching import DEFAULT_REVISION, Snapshot, cached_revisions, fetch

__all__ = ["DEFAULT_REVISION", "Snapshot", "cached_revisions", "fetch"]
