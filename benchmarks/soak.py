"""Half an hour of everything at once: does a server that has been used stay as it was?

    .venv/bin/python -m benchmarks.soak [--minutes 30] [--record]

A real server with the demo, twice: `demo` stays loaded, `other` is unloaded and loaded all along.
Clients send every kind of request there is (`soak_requests`), good ones and bad ones; some leave.
Memory, descriptors and threads of the server and of the engine are looked at meanwhile, and, after
the warm-up and at the end, a few times while nobody asks and both have given back what they need
not. The warm-up is a third of the time, half of it beside a busy process, so that fewer threads
compute, and each half begins with prompts of every length: libraries keep something for each size
they met. Every token is sent once, too: rows of an embedding are read from its file when they are
first used. What lies between the least of the looks before and after is the verdict: less than 1 MB
more for a thousand requests, descriptors and threads as before, nothing left in the engine, and no
500.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks import record
from benchmarks.neighbour import neighbours
from benchmarks.server import MODEL, serving
from benchmarks.soak_requests import (
    CONTEXT,
    OTHER_MODEL,
    Administrator,
    Tally,
    ask,
    ask_every_length,
    ask_every_token,
    ask_little,
)
from engine.process.rest_memory import REST_S
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import default_branch
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.server import Server

MINUTES = 30.0
WARM_UP_SHARE = 1 / 3  # until every kind of request has met every other
NUM_CLIENTS = 8
MAX_NUM_SEQS = 4  # less than ask at once, so that some wait
MAX_QUEUED_SEQS = 12  # and some are refused
KV_CACHE = "192MiB"  # two whole contexts; little enough to be touched everywhere at once
RELOAD_REST_S = 20.0  # between loading and unloading
NUM_SAMPLES = 200
NUM_LOOKS = 5  # at what rests
GIVING_BACK_S = 3.0  # before and after the moment at which an engine should give its memory back
LOOK_S = 0.02
SETTLING_S = 60.0  # at most, until nothing runs and connections are closed

MAX_GROWTH_MB = 1.0  # for a thousand requests
MAX_MORE_DESCRIPTORS = 3
MAX_MORE_THREADS = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes hold at one moment."""

    at_s: float  # since the traffic began
    requests: int
    api_mb: float
    engine_mb: float
    engine_mapped_mb: float  # of these, pages of files: libraries, mapped weights
    api_descriptors: int
    engine_descriptors: int
    api_threads: int
    engine_threads: int


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What an engine still holds while nobody asks."""

    model: str
    is_idle: bool
    problem: str | None  # of its accounting
    running: int
    waiting: int
    blocks_in_use: int


class Watcher:
    """Looks at the server's process and at the process of the engine that stays."""

    def __init__(self, server: Server, tally: Tally) -> None:
        self._api = server.api
        self._engine = psutil.Process(server.engine_pid(MODEL))
        self._tally = tally
        self._began = time.monotonic()

    def look(self) -> Sample:
        """Return what is held now."""
        return Sample(
            at_s=round(time.monotonic() - self._began, 1),
            requests=self._tally.num_requests,
            api_mb=_resident_mb(self._api),
            engine_mb=_resident_mb(self._engine),
            engine_mapped_mb=round(self._engine.memory_info().shared / 1e6, 1),
            api_descriptors=self._api.num_fds(),
            engine_descriptors=self._engine.num_fds(),
            api_threads=self._api.num_threads(),
            engine_threads=self._engine.num_threads(),
        )

    def look_when_least(self, seconds: float) -> Sample:
        """Look for so long; return what is held in the end, but of memory the least that was.

        An engine gives its memory back at one moment and takes some again at the next, as the live
        check goes on: 13 MB within half a second, 33 within half a minute.
        """
        until = time.monotonic() + seconds
        looks = [self.look()]
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            looks.append(self.look())
        return with_least_memory(looks)

    async def keep_looking(self, every_s: float, until: asyncio.Event) -> list[Sample]:
        """Look in even intervals."""
        samples = []
        while not until.is_set():
            samples.append(self.look())
            try:
                await asyncio.wait_for(until.wait(), every_s)
            except TimeoutError:
                continue
        return samples


def with_least_memory(looks: Sequence[Sample]) -> Sample:
    """Return the last look, but of memory the least that any saw."""
    return replace(
        looks[-1],
        api_mb=min(look.api_mb for look in looks),
        engine_mb=min(look.engine_mb for look in looks),
    )


def _resident_mb(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 1e6, 1)


def run(minutes: float, variant: str | None = None) -> dict[str, Any]:
    """Soak a server for so long; return what was seen, and the verdict.

    variant: what to serve twice, from the cache that the environment names; the demo if None.
    """
    cache_dir = default_cache_dir()
    if variant is None:
        demo = build_demo(cache_dir, [default_branch()], on_progress=print)
        variant, cache_dir = demo.default_spec, demo.cache_dir
    flags = (
        *("--also", f"{OTHER_MODEL}={variant}", "--cache-dir", str(cache_dir)),
        *("--max-model-len", str(CONTEXT), "--kv-cache-size", KV_CACHE, "--local-files-only"),
        *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-queued-seqs", str(MAX_QUEUED_SEQS)),
    )
    with serving(variant, "--served-model-name", MODEL, *flags) as server:
        tally = Tally()
        watcher = Watcher(server, tally)
        warm_up_s = 60 * minutes * WARM_UP_SHARE
        every_s = 60 * minutes / NUM_SAMPLES
        series: list[Sample] = []
        asyncio.run(ask_every_token(server, tally, _vocab_size(variant, cache_dir)))
        # With one thread fewer as well: the rest of the time may have company, and meets the same.
        for num_neighbours in (0, 1):
            with neighbours(num_neighbours, duty=1.0):
                asyncio.run(ask_every_length(server, tally, salt=str(num_neighbours)))
                series += asyncio.run(_have_asked(server, watcher, tally, warm_up_s / 2, every_s))
        before = _look_at_rest(server, watcher, tally)
        rest_s = 60 * minutes - warm_up_s
        series += asyncio.run(_have_asked(server, watcher, tally, rest_s, every_s))
        after = _look_at_rest(server, watcher, tally)
        leftovers = [_left_in(server, model) for model in (MODEL, OTHER_MODEL)]
    return {
        "before": asdict(before),
        "after": asdict(after),
        "leftovers": [asdict(one) for one in leftovers],
        "requests": tally.num_requests,
        "answers": dict(sorted(tally.statuses.items())),
        "wrong answers": tally.wrong,
        "verdict": judge(before, after, leftovers, tally),
        "series": columns(series),
    }


def _vocab_size(variant: str, cache_dir: Path) -> int:
    snapshot = open_snapshot(parse_spec(variant), cache_dir=cache_dir, local_files_only=True)
    return int(json.loads((snapshot.folder / "config.json").read_text())["vocab_size"])


async def _have_asked(
    server: Server, watcher: Watcher, tally: Tally, seconds: float, every_s: float
) -> list[Sample]:
    """Let all clients ask for so long; return what was held meanwhile."""
    until = asyncio.Event()
    seeds = range(tally.num_requests, tally.num_requests + NUM_CLIENTS)
    asking = [
        *(asyncio.create_task(ask(server, seed, tally, until)) for seed in seeds),
        asyncio.create_task(Administrator(server, tally).work(RELOAD_REST_S, until)),
    ]
    looking = asyncio.create_task(watcher.keep_looking(every_s, until))
    await asyncio.wait(asking, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    until.set()
    await asyncio.gather(*asking)
    return await looking


def _look_at_rest(server: Server, watcher: Watcher, tally: Tally) -> Sample:
    """Look a few times at what rests; return what was held in the end, of memory the least.

    How much memory an engine has in use as it gives the rest back depends on how far the live check
    is at that moment.
    """
    looks = [_look_once_at_rest(server, watcher)]
    while len(looks) < NUM_LOOKS:
        asyncio.run(ask_little(server, tally))  # so that the engine steps, rests and gives back
        looks.append(_look_once_at_rest(server, watcher))
    print("at rest:", *((look.api_mb, look.engine_mb) for look in looks))
    return with_least_memory(looks)


def _look_once_at_rest(server: Server, watcher: Watcher) -> Sample:
    """Wait until both models serve and nothing runs; then look."""
    deadline = time.monotonic() + SETTLING_S
    server.wait_ready()
    while time.monotonic() < deadline:
        if all(server.check(model)["is_idle"] for model in (MODEL, OTHER_MODEL)):
            break
        time.sleep(0.2)
    server.send_large_body()
    time.sleep(REST_S - GIVING_BACK_S)  # for connections that were left, and for memory of both
    return watcher.look_when_least(2 * GIVING_BACK_S)


def _left_in(server: Server, model: str) -> Leftovers:
    checked = server.check(model)
    told = server.statistics(model)
    return Leftovers(
        model=model,
        is_idle=checked["is_idle"],
        problem=checked["problem"],
        running=told["num_running"],
        waiting=told["num_waiting"],
        blocks_in_use=told["num_blocks"] - told["num_free_blocks"],
    )


def judge(
    before: Sample, after: Sample, leftovers: Sequence[Leftovers], tally: Tally
) -> dict[str, Any]:
    """Say of each bound whether it was kept; `passed` is all of them."""
    thousands = (after.requests - before.requests) / 1000
    growth = {
        name: round((getattr(after, f"{name}_mb") - getattr(before, f"{name}_mb")) / thousands, 3)
        for name in ("api", "engine")
    }
    kept = {
        "server grows by less than 1 MB in 1000 requests": growth["api"] < MAX_GROWTH_MB,
        "engine grows by less than 1 MB in 1000 requests": growth["engine"] < MAX_GROWTH_MB,
        "descriptors as before": _is_back("descriptors", before, after, MAX_MORE_DESCRIPTORS),
        "threads as before": _is_back("threads", before, after, MAX_MORE_THREADS),
        "nothing left in the engines": all(
            one.is_idle and one.problem is None and not one.blocks_in_use for one in leftovers
        )
        and not any(one.running or one.waiting for one in leftovers),
        "no 500": tally.num_500 == 0,
        "every answer has the status that it must": tally.num_wrong == 0,
    }
    return {"MB more in 1000 requests": growth, **kept, "passed": all(kept.values())}


def _is_back(what: str, before: Sample, after: Sample, allowance: int) -> bool:
    return all(
        getattr(after, f"{process}_{what}") - getattr(before, f"{process}_{what}") <= allowance
        for process in ("api", "engine")
    )


def columns(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Return the series by figure: a result file then has one line a figure."""
    rows = [asdict(sample) for sample in samples]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def main() -> None:
    """Soak a server, say the verdict, and fail where it is bad."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--variant", help="serve another than the demo, for a quick try")
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    seen = run(arguments.minutes, arguments.variant)
    print(json.dumps({**seen, "series": "…"}, indent=1, ensure_ascii=False))
    if arguments.record:
        settings = {"minutes": arguments.minutes, "clients": NUM_CLIENTS, "kv_cache": KV_CACHE}
        print(record.write("soak", settings, [seen]))
    if not seen["verdict"]["passed"]:
        raise SystemExit("the soak failed; the verdict above says where")


if __name__ == "__main__":
    main()
