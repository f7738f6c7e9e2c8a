"""How often, and after which wait, an engine that ended is started again. Pure policy."""

from __future__ import annotations

FIRST_DELAY_S = 0.5  # before an engine is started again; doubles while none comes to serve
LONGEST_DELAY_S = 30.0
HEALTHY_S = 60.0  # an engine that served so long has made up for the deaths before it


class RestartPolicy:
    """Counts the engines of one variant that ended, from its loading on."""

    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        self._num_deaths = 0  # since the last healthy engine, its own end among them
        self._delay_s = 0.0

    @property
    def is_first_engine(self) -> bool:
        """Whether no engine has ended yet."""
        return self._num_deaths == 0

    def delay_after(self, served_s: float) -> float | None:
        """Count an engine that ended; return the wait before the next, None where it is given up.

        served_s: how long it served; 0 where it never came to.
        """
        self._num_deaths = 1 if served_s >= HEALTHY_S else self._num_deaths + 1
        if self._num_deaths > self._max_restarts:
            return None
        # One that came to serve is worth waiting for; how often is bounded all the same.
        is_worse = bool(self._delay_s) and not served_s
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S) if is_worse else FIRST_DELAY_S
        return self._delay_s
