"""Counts launches of kernels by name, for tests of which path a product took.

Off by default: a launcher then asks one `if`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_counts: Counter[str] | None = None


def count(name: str) -> None:
    """Note a launch, where somebody counts."""
    if _counts is not None:
        _counts[name] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what is launched inside, by any thread."""
    global _counts
    before, _counts = _counts, Counter()
    try:
        yield _counts
    finally:
        _counts = before
