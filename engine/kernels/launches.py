"""Counts launches by name while somebody asks, so that a test sees which path a step took.

Every launcher says its name here. It costs one `if` while nobody asks. A replayed CUDA graph
launches nothing here: what it holds was counted when it was captured. `loaders.model.kernels`, a
stranger to this package, counts its own.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the process, not of a thread: whoever asks need not be the thread that runs the steps.
_asked: list[Counter[str]] = []


def count(name: str) -> None:
    """Note one launch."""
    if _asked:
        for launches in _asked:
            launches[name] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count launches by name until the end of the block; blocks may lie in one another."""
    launches: Counter[str] = Counter()
    _asked.append(launches)
    try:
        yield launches
    finally:
        # By identity: two counters that hold the same are equal.
        _asked[:] = [other for other in _asked if other is not launches]
