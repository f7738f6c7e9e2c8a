"""Where downloaded and built checkpoints lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

# In the folder of a repository that was built on this machine and is on no hub.
BUILT_MARK = "tetrad-built.json"


def default_cache_dir() -> Path:
    """Return `TETRAD_CACHE_DIR`, else `tetrad` in the user's cache folder."""
    if named := os.environ.get("TETRAD_CACHE_DIR"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tetrad"


def repository_folder(cache_dir: Path, repo: str) -> Path:
    """Name the folder of `owner/name` inside a cache, as the hub's client does."""
    return cache_dir / f"models--{repo.replace('/', '--')}"


def find_built(repo: str, cache_dir: Path | None) -> Path | None:
    """Return the cache that holds a repository built on this machine: this one, or the default."""
    for folder in (cache_dir, default_cache_dir()):
        if folder is not None and (repository_folder(folder, repo) / BUILT_MARK).is_file():
            return folder
    return None
