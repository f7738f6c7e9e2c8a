"""Has the branch built that a name means, where the name is one of the demo's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.cache import default_cache_dir
from loaders.demo.build import build_demo
from loaders.demo.listing import DemoFiles, is_demo
from loaders.demo.places import cache_of
from loaders.demo.progress import StepsWithPercent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loaders.repository.spec import VariantSpec


def build_named(
    spec: VariantSpec,
    cache_dir: Path | None,
    *,
    on_progress: Callable[[str, float | None], None],
) -> Path | None:
    """Return the cache that holds the demo's branch of this name, which is built where it is not.

    None where the name means no repository of the demo. on_progress: called with each step, and
    with the percentage of it that is done. Raises RevisionNotFoundError where the demo has no such
    branch, and DemoError.
    """
    if not is_demo(spec):
        return None
    repository = DemoFiles(spec.repo, cache_dir)
    branch = repository.branch_of(repository.find_revision(spec.revision))
    if (found := cache_of(branch, cache_dir)) is not None:
        return found
    steps = StepsWithPercent(on_progress, prefix="building the demo: ")
    target = cache_dir or default_cache_dir()
    build_demo(target, [branch], on_progress=steps.begin, on_percent_done=steps.note)
    return target
