"""Tells how far a download has come, through the bars that the hub's client would draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm.std import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable


def quiet_bars(tell: Callable[[float], None], num_bytes: int) -> type[tqdm]:
    """Return a class of bars that draw nothing, and tell percents of so many bytes instead.

    The client draws one bar of bytes received and one of bytes written; whichever is further
    counts, since depending on the transport only one of them moves. Bars are updated by several
    threads.
    """
    told = -1.0

    class QuietBar(tqdm):  # type: ignore[misc]  # tqdm has no types of its own
        monitor_interval = 0  # no thread that looks after bars

        def update(self, n: float | None = 1) -> None:
            nonlocal told
            super().update(n)
            percent = min(100.0, 100 * self.n / num_bytes) if num_bytes else 0.0
            if self.unit == "B" and percent >= told + 1:
                told = percent
                tell(percent)

        def display(self, *_arguments: object, **_named: object) -> None:
            """Draw nothing: a server's log takes lines."""

    return QuietBar
