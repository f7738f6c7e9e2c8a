from __future__ import annotations

import asyncio

from service.batches.beside import BatchesBeside


class Noted:
    """Engines and a keeper at once, which note what is asked of them."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def start_engines(self) -> None:
        self.events.append("engines start")

    async def close_engines(self) -> None:
        self.events.append("engines close")

    async def start(self, execute: object) -> None:
        self.events.append(f"batches start with {execute}")

    async def close(self) -> None:
        self.events.append("batches close")


class Engines:
    def __init__(self, noted: Noted) -> None:
        self.start, self.close = noted.start_engines, noted.close_engines


def test_batches_end_as_soon_as_the_server_drains_and_before_the_engines():
    async def check() -> None:
        noted, draining = Noted(), asyncio.Event()

        async def until_ending() -> None:
            await draining.wait()

        both = BatchesBeside(Engines(noted), noted, "it", until_ending)  # type: ignore[arg-type]
        both.start()
        await asyncio.sleep(0)
        assert noted.events == ["engines start", "batches start with it"]
        draining.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert noted.events[2:] == ["batches close"]
        await both.close()
        assert noted.events[3:] == ["engines close"]

    asyncio.run(check())


def test_batches_end_with_the_engines_where_nobody_said_that_the_server_drains():
    async def check() -> None:
        noted = Noted()

        async def until_ending() -> None:
            await asyncio.Event().wait()

        both = BatchesBeside(Engines(noted), noted, "it", until_ending)  # type: ignore[arg-type]
        both.start()
        await asyncio.sleep(0)
        await both.close()
        assert noted.events[2:] == ["batches close", "engines close"]

    asyncio.run(check())
