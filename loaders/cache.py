"""Where downloaded and built checkpoints lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return `TETRAD_CACHE_DIR`, else `tetrad` in the user's cache folder."""
    if named := os.environ.get("TETRAD_CACHE_DIR"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tetrad"
