"""A clock that stands still but for what takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeClock:
    """Seconds, and calls that take some."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float) -> Callable[..., None]:
        """A call that takes these seconds in turn, the last ones over and over."""
        left = list(seconds)

        def call(*_: object) -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call
