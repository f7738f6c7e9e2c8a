"""Builds the demo's repositories, once, where the hub's downloads lie too.

Everything is made in a folder beside them and renamed into place when it is whole, under a lock, so
that a build may be killed, or asked for by several processes at once.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from loaders.cache import BUILT_MARK, repository_folder
from loaders.demo.branches import AWQ_BRANCHES, BRANCHES, DEMO_AWQ_REPO, DEMO_REPO, GPTQ_BRANCHES
from loaders.demo.checkpoint import WEIGHTS_FILE, write_branch
from loaders.demo.errors import DemoError
from loaders.demo.model_card import MeasuredBranch, model_card
from loaders.demo.perplexity import (
    EVALUATION_TEXT,
    measure_checkpoint,
    measure_source,
    recorded_perplexity,
)
from loaders.demo.repository import commit_branch, find_snapshot
from loaders.demo.source import SourceModel, find_gguf, read_source
from loaders.records import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loaders.demo.branches import DemoBranch

# The branch that answers best for its speed. Asked to write a function that reverses a string,
# greedily and with the recommended sampling, both 8-bit branches return s[::-1]; the one without
# groups explains it shortly, the one with groups adds a wrong example; 4-bit group 32 strips white
# space in a loop (2026-11). Perplexities 12.46, 12.45 and 14.50.
DEMO_DEFAULT_BRANCH = "gptq-8bit--1g-actorder_True"

# Raise it when what is built changes: caches with another number are rebuilt.
BUILD = 3
_NEEDED_BYTES = 1_200_000_000  # 0.94 GB are written


@dataclass(frozen=True, slots=True)
class DemoRepositories:
    """The demo, built and complete."""

    cache_dir: Path
    gptq_repo: str
    awq_repo: str
    default_spec: str  # the variant to serve when none is named, as repo:branch


def find_demo(cache_dir: Path) -> DemoRepositories | None:
    """Return the demo if this version of it lies complete in the cache."""
    mark = repository_folder(cache_dir, DEMO_REPO) / BUILT_MARK
    if not mark.is_file() or json.loads(mark.read_text()).get("build") != BUILD:
        return None
    if any(find_snapshot(cache_dir, one.repo, one.name) is None for one in BRANCHES):
        return None
    return DemoRepositories(
        cache_dir=cache_dir,
        gptq_repo=DEMO_REPO,
        awq_repo=DEMO_AWQ_REPO,
        default_spec=f"{DEMO_REPO}:{DEMO_DEFAULT_BRANCH}",
    )


def build_demo(cache_dir: Path, *, on_progress: Callable[[str], None]) -> DemoRepositories:
    """Return the demo, building it first where it is missing.

    progress: called with a line of text at each step. Raises DemoError where the packages that it
    is made of, or the space for it, are missing.
    """
    if found := find_demo(cache_dir):
        return found
    find_gguf()  # so that a missing package is reported before anything is written
    with _locked(cache_dir, on_progress):
        if found := find_demo(cache_dir):
            return found
        _check_space(cache_dir)
        for left_over in cache_dir.glob(".demo-*"):  # of a build that was killed
            shutil.rmtree(left_over)
        with TemporaryDirectory(prefix=".demo-", dir=cache_dir) as staging:
            perplexities = _build(Path(staging), on_progress)
            _move_into_place(Path(staging), cache_dir)
        for commit, perplexity in perplexities.items():
            Records(cache_dir).write(commit, "perplexity", perplexity)
    if built := find_demo(cache_dir):
        on_progress("the demo is built")
        return built
    raise DemoError(
        f"the demo was built, but is not complete in {cache_dir}; remove it there and retry"
    )


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


def _check_space(cache_dir: Path) -> None:
    free = shutil.disk_usage(cache_dir).free
    if free < _NEEDED_BYTES:
        raise DemoError(
            f"the demo needs {_NEEDED_BYTES / 1e9:.1f} GB in {cache_dir}, {free / 1e9:.1f} GB are"
            " free; make room, or name another folder in TETRAD_CACHE_DIR"
        )


def _build(staging: Path, on_progress: Callable[[str], None]) -> dict[str, float]:
    """Write both repositories; return the perplexity of each commit."""
    on_progress(f"reading {find_gguf().name}")
    source = read_source()
    measured = []
    for number, branch in enumerate(BRANCHES, start=1):
        on_progress(f"rounding {branch} ({number} of {len(BRANCHES)})")
        folder = _branch_folder(staging, branch)
        write_branch(folder, source, branch)
        weights = folder / WEIGHTS_FILE
        measured.append(
            MeasuredBranch(branch, weights.stat().st_size, _branch_perplexity(folder, on_progress))
        )

    on_progress("writing the model cards")
    num_tokens = len(source.tokenizer(EVALUATION_TEXT.read_text(encoding="utf-8"))["input_ids"])
    source_perplexity = _source_perplexity(source, on_progress)
    perplexities = {}
    for branches in (GPTQ_BRANCHES, AWQ_BRANCHES):
        card = model_card(
            [one for one in measured if one.branch in branches],
            source_perplexity=source_perplexity,
            num_tokens=num_tokens,
        )
        for branch in branches:
            folder = _branch_folder(staging, branch)
            (folder / "README.md").write_text(card, encoding="utf-8")
            snapshot = commit_branch(staging, branch.repo, branch.name, folder)
            perplexities[snapshot.name] = next(
                one.perplexity for one in measured if one.branch is branch
            )
    for repo in (DEMO_REPO, DEMO_AWQ_REPO):
        mark = repository_folder(staging, repo) / BUILT_MARK
        mark.write_text(json.dumps({"build": BUILD}) + "\n")
    return perplexities


def _branch_folder(staging: Path, branch: DemoBranch) -> Path:
    return staging / "files" / branch.quant_method / branch.name


def _branch_perplexity(folder: Path, on_progress: Callable[[str], None]) -> float:
    recorded = recorded_perplexity(folder / WEIGHTS_FILE)
    if recorded is not None:
        return recorded
    on_progress(f"measuring the perplexity of {folder.name}, which is not on record")
    return measure_checkpoint(folder)


def _source_perplexity(source: SourceModel, on_progress: Callable[[str], None]) -> float:
    recorded = recorded_perplexity(find_gguf())
    if recorded is not None:
        return recorded
    on_progress("measuring the perplexity of the source, which is not on record")
    return measure_source(source)


def _move_into_place(staging: Path, cache_dir: Path) -> None:
    """Rename the repositories into the cache; what they replace is thrown away with the staging."""
    for repo in (DEMO_AWQ_REPO, DEMO_REPO):  # the one whose mark find_demo reads comes last
        target = repository_folder(cache_dir, repo)
        if target.exists():
            target.rename(staging / f"old-{target.name}")
        repository_folder(staging, repo).rename(target)
