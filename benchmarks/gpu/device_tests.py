"""Part "tests": the repository's tests that need a GPU, or do more on one, in this process.

What nothing else of the program has looked at comes first, what it has looked at in another way
last, because time may end before they do.
"""

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
PLACES = (
    "tests/gpu/test_start_cuda.py",
    "tests/gpu/test_linear_kernels_cuda.py",
    "tests/gpu/test_load_cuda.py",
    "tests/gpu/test_sampler_cuda.py",
    "tests/gpu/test_plan_cuda.py",
    "tests/gpu/test_offload_cuda.py",
    "tests/gpu/test_engine_cuda.py",
    "tests/engine/kernels",
    "tests/loaders/model/kernels/triton",
)
# In a dry run, where nothing of tests/gpu runs, the tests of kernels were run elsewhere.
DRY_PLACES = ("tests/gpu",)


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
    """Run the tests; raises `CheckFailedError` unless they pass."""
    tally = Tally(context)
    options = ["-v", "-p", "no:cacheprovider", "--timeout", str(TIMEOUT_S)]
    # What warns there are versions that the project does not pin; here it is results that count.
    options += ["-W", "default", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    places = DRY_PLACES if context.is_dry else PLACES
    code = pytest.main([*options, *(str(ROOT / place) for place in places)], plugins=[tally])
    if code != pytest.ExitCode.OK:
        raise CheckFailedError(f"tests: {tally.text}")
