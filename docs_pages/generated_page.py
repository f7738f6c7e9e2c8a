"""The command of pages that are generated: writes one, or with --check compares it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

UP_TO_DATE, STALE, WRONG_USE = 0, 1, 2


def run(arguments: Sequence[str], page: Path, render: Callable[[], str], module: str) -> int:
    """Write a page, or compare it; return the exit code. module: what `python -m` runs."""
    if list(arguments) not in ([], ["--check"]):
        sys.stderr.write(f"usage: python -m {module} [--check]\n")
        return WRONG_USE
    text = render()
    if not arguments:
        page.write_text(text, encoding="utf-8")
        return UP_TO_DATE
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return UP_TO_DATE
    sys.stderr.write(f"{page} is not up to date; write it with: python -m {module}\n")
    return STALE
