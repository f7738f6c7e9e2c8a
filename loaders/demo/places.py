"""Where a branch of the demo lies on this machine, if it was built."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from loaders.cache import BUILT_MARK, default_cache_dir, repository_folder
from loaders.demo.repository import find_snapshot
from loaders.repository.manifest import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from loaders.demo.branches import DemoBranch

# Raise it when what is built changes: caches with another number are rebuilt.
BUILD = 3


def find_branch(cache_dir: Path, branch: DemoBranch) -> Path | None:
    """Return the snapshot of a branch if this version of it lies whole in a cache."""
    if not is_this_build(cache_dir, branch.repo):
        return None
    return find_snapshot(cache_dir, branch.repo, branch.name)


def caches(cache_dir: Path | None) -> list[Path]:
    """List the caches that a branch may lie in: the one that is named, then everybody's."""
    named = [] if cache_dir is None else [cache_dir]
    return list(dict.fromkeys([*named, default_cache_dir()]))


def cache_of(branch: DemoBranch, cache_dir: Path | None) -> Path | None:
    """Return the cache that holds a branch, None where it is not built."""
    return next((one for one in caches(cache_dir) if find_branch(one, branch) is not None), None)


def is_this_build(cache_dir: Path, repo: str) -> bool:
    """Tell whether a repository in a cache was built by this version."""
    mark = repository_folder(cache_dir, repo) / BUILT_MARK
    try:
        value = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("build") == BUILD


def mark_as_built(cache_dir: Path, repo: str) -> None:
    """Note that what lies in a repository's folder was built here, by this version."""
    folder = repository_folder(cache_dir, repo)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / BUILT_MARK, (json.dumps({"build": BUILD}) + "\n").encode())
