"""The metrics of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from service.observation.families import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric


class ObservedLines(Protocol):
    """What becomes of the lines of batches."""

    @property
    def num_running(self) -> int:
        """That are under way."""

    @property
    def num_waiting(self) -> int:
        """Of open batches, that nobody works on."""

    @property
    def num_completed(self) -> int:
        """Since the process began."""

    @property
    def num_failed(self) -> int:
        """Since then, that were answered with an error."""


class ObservedBatches(Protocol):
    """What is seen of batches; `service.batches.keeper.BatchKeeper` has them."""

    @property
    def num_open_batches(self) -> int:
        """That are not over."""

    @property
    def num_stopped_batches(self) -> int:
        """Of them, that a fault has stopped."""

    @property
    def oldest_open_s(self) -> float:
        """For how long the oldest of them has been there; 0 without one."""

    @property
    def is_unavailable(self) -> bool:
        """Whether the folder that keeps them cannot be opened: for the disk, or another server."""

    @property
    def counts(self) -> ObservedLines:
        """What becomes of their lines."""


def batch_families(batches: ObservedBatches) -> Iterator[Metric]:
    """Make the families."""
    lines = batches.counts
    yield gauge(
        "tetrad_batches_open", "Batches that are not over.", (), [((), batches.num_open_batches)]
    )
    yield gauge(
        "tetrad_batches_stopped",
        "Open batches that a fault has stopped.",
        (),
        [((), batches.num_stopped_batches)],
    )
    yield gauge(
        "tetrad_batches_unavailable",
        "1 while the folder of batches cannot be opened (disk, or another server has it), else 0.",
        (),
        [((), int(batches.is_unavailable))],
    )
    yield gauge(
        "tetrad_batch_oldest_seconds",
        "For how long the oldest open batch has been there; 0 without one.",
        (),
        [((), batches.oldest_open_s)],
    )
    yield gauge(
        "tetrad_batch_lines",
        "Requests of open batches that have no answer yet.",
        ("state",),
        [(("waiting",), lines.num_waiting), (("running",), lines.num_running)],
    )
    yield counter(
        "tetrad_batch_lines_done",
        "Requests of batches that were answered.",
        ("outcome",),
        [(("completed",), lines.num_completed), (("failed",), lines.num_failed)],
    )
