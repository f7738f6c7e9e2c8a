"""Clients that keep connections and never finish a request, as many as asked for.

`python -m tests.service.server.held_connections HOST PORT SECONDS '{"idle": 20, "dripping": 2}'`
holds them, begins again with each that the server closes, and says at the end what became of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
from collections import Counter

HALF_OPEN = b"GET /health/live HTTP/1.1\r\nHost: x\r\nx-half: "
DRIPPING = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\n"
    b"content-length: 100000\r\n\r\n"
)
FIRST = {"idle": b"", "half_open": HALF_OPEN, "dripping": DRIPPING}
DRIP_INTERVAL_S = 1.0
AGAIN_AFTER_S = 0.25


class Holder:
    """Holds connections of one kind, and counts how they ended."""

    def __init__(self, host: str, port: int, kind: str) -> None:
        self._host = host
        self._port = port
        self._kind = kind
        self.ended: Counter[str] = Counter()

    async def run(self) -> None:
        while True:
            try:
                await self._hold_one()
            except OSError as error:
                self.ended[f"{self._kind}: {type(error).__name__}"] += 1
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _hold_one(self) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(FIRST[self._kind])
            drip = asyncio.create_task(self._drip(writer))
            try:
                line = await reader.readline()
            finally:
                drip.cancel()
            status = line.split(b" ")[1].decode() if line else "closed"
            self.ended[f"{self._kind}: {status}"] += 1
        finally:
            writer.transport.abort()

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        while self._kind == "dripping":
            await asyncio.sleep(DRIP_INTERVAL_S)
            with contextlib.suppress(OSError):
                writer.write(b" ")


async def hold(host: str, port: int, seconds: float, counts: dict[str, int]) -> Counter[str]:
    """Hold so many of each kind for a while; return how many ended how."""
    holders = {kind: Holder(host, port, kind) for kind in counts}
    tasks = []
    for kind, count in counts.items():
        for _ in range(count):
            tasks.append(asyncio.create_task(holders[kind].run()))
            if len(tasks) % 50 == 0:
                await asyncio.sleep(0.01)
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sum((holder.ended for holder in holders.values()), Counter())


def main() -> None:
    host, port, seconds, counts = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ended = asyncio.run(hold(host, int(port), float(seconds), json.loads(counts)))
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
