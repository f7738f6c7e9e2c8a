"""Part "tests": the repository's tests that need a GPU, in this process."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu.context import CheckFailedError

if TYPE_CHECKING:
    from benchmarks.gpu.context import Context

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60  # of one test


class Tally:
    """Counts what pytest reports, and keeps each failure's message."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._counts: collections.Counter[str] = collections.Counter()
        self._failures: list[dict[str, str]] = []

    @property
    def text(self) -> str:
        """Say it in words."""
        return ", ".join(f"{count} {how}" for how, count in self._counts.items()) or "none ran"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count files that cannot be read."""
        if report.failed:
            self._fail(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: as it ran, or where its fixtures failed."""
        if report.failed:
            self._fail(report)
        elif report.when == "call" or report.skipped:
            self._count(report.outcome)

    def _fail(self, report: Any) -> None:
        lines = str(report.longrepr).splitlines()
        # pytest marks the lines that say what was wrong.
        wrong = [line for line in lines if line.startswith("E ")] or lines[-3:]
        self._failures.append({"test": report.nodeid, "message": "\n".join(wrong[:6])})
        self._count("failed")

    def _count(self, how: str) -> None:
        self._counts[how] += 1
        self._context.save(counts=dict(self._counts), failures=self._failures, summary=self.text)


def run(context: Context) -> None:
    """Run tests/gpu; raises `CheckFailedError` unless they pass."""
    tally = Tally(context)
    options = ["-v", "-p", "no:cacheprovider", "--timeout", str(TIMEOUT_S)]
    # What warns there are versions that the project does not pin; here it is results that count.
    options += ["-W", "default", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    code = pytest.main([*options, str(ROOT / "tests" / "gpu")], plugins=[tally])
    if code != pytest.ExitCode.OK:
        raise CheckFailedError(f"tests/gpu: {tally.text}")
