"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time

from service.observation import loop_lag
from service.observation.loop_lag import LoopLag


def test_what_holds_the_loop_up_shows_as_a_delay(monkeypatch):
    monkeypatch.setattr(loop_lag, "INTERVAL_S", 0.01)

    async def test() -> LoopLag:
        lag = LoopLag()
        lag.start()
        lag.start()  # without effect
        await asyncio.sleep(0.05)
        time.sleep(0.3)  # what must not be done
        await asyncio.sleep(0.05)
        return lag

    lag = asyncio.run(test())
    assert sum(lag.delays.counts) <= 12  # of one timer, not of two
    above = [
        count
        for bound, count in zip((*lag.delays.bounds, 99), lag.delays.counts, strict=True)
        if bound > 0.25
    ]
    assert sum(above) >= 1
    assert lag.delays.total > 0.25
