"""The engine's speed beside busy neighbours: by default, and with other ways to wait or compute.

    .venv/bin/python -m benchmarks.neighbour [--variant SPEC] [--rounds 3] [--busy 0 1 2]
        [--duty 1.0] [--ways default sleep …] [--samples FILE] [--record]

Every way is an engine process of its own, started as the server starts it. They take turns; those
whose turn it is not are stopped (SIGSTOP), so that none is another's company. A neighbour is a
process of one thread that is always busy, of the same nice value; with --duty 0.3 it is busy for
three tenths of the time, such as the server's own process beside many streams. The goal for
decoding is 0.8 × alone × cores ÷ (cores + neighbours), where "alone" is the default's.

With --samples what was measured is kept in a file after each turn, and another run goes on where
that one was ended. About seven minutes on two cores; nothing else should run meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.command_line import make_parser
from engine.sampling_params import SamplingParams
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import default_branch
from service.settings import WorkerSettings
from service.variants.handles import EngineProcess
from service.worker_protocol.load_attempt import LoadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 3
LIMIT_S = 450.0
GOAL = 0.8
CORES = len(os.sched_getaffinity(0))
# An engine that adapts is given the time that it takes to notice who has come or gone.
SETTLE_S, SETTLE_ADAPTING_S = 0.3, 1.8
# Busy in pieces as short as an answer's token takes a server.
NEIGHBOUR = """
import os, sys, time
parent, duty, piece_s = int(sys.argv[1]), float(sys.argv[2]), 0.003
while os.getppid() == parent:
    until = time.perf_counter() + piece_s
    while time.perf_counter() < until:
        pass
    if duty < 1:
        time.sleep(piece_s / duty - piece_s)
"""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run an engine."""

    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def settle_s(self) -> float:
        """For how long it decodes before it is measured."""
        return SETTLE_S if "num_threads" in self.settings else SETTLE_ADAPTING_S


WAYS = {
    "default": Way(),
    "default, sleep": Way({"thread_wait": "sleep"}),
    "spin": Way({"num_threads": CORES}),
    "sleep": Way({"num_threads": CORES, "thread_wait": "sleep"}),
    "spin 10k": Way({"num_threads": CORES}, {"GOMP_SPINCOUNT": "10000"}),
    "one fewer": Way({"num_threads": max(1, CORES - 1)}),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure, in tokens a second."""

    name: str
    num_streams: int
    prompt_tokens: int
    decode_tokens: int  # of each stream; 0: how fast the prompt is read


MEASURES = (
    Measure("decode, 1 stream", 1, 64, 40),
    Measure("decode, 8 streams", 8, 64, 16),
    Measure("prompt, 512 tokens", 1, 512, 0),
)


class RunningEngine:
    """An engine's process that stands still while another one is measured."""

    def __init__(self, handle: EngineProcess, vocab_size: int, settle_s: float) -> None:
        self._handle = handle
        self._vocab_size = vocab_size
        self._settle_s = settle_s
        self._generator = torch.Generator().manual_seed(os.getpid())

    @classmethod
    async def start(cls, way: Way, variant: str, cache_dir: Path) -> RunningEngine:
        settings = WorkerSettings(
            variant=variant,
            cache_dir=cache_dir,
            device="cpu",
            local_files_only=True,
            max_num_seqs=8,
            max_model_len=2048,
            log_level="warning",
            kv_cache_size=512 * 2**20,
            **way.settings,
        )
        with _environment(way.environment):
            handle = await EngineProcess.start(settings, LoadRequest(), lambda _: None)
        ready = await handle.client.ready()
        engine = cls(handle, ready.vocab_size, way.settle_s)
        engine.halt()
        return engine

    def halt(self) -> None:
        os.kill(self._handle.pid, signal.SIGSTOP)

    async def measure(self) -> dict[str, float]:
        """Go on for a turn of every measure; return tokens a second by their names."""
        os.kill(self._handle.pid, signal.SIGCONT)
        try:
            await self._settle()
            return {measure.name: await self._sample(measure) for measure in MEASURES}
        finally:
            self.halt()

    async def end(self) -> None:
        os.kill(self._handle.pid, signal.SIGCONT)
        await self._handle.stop()

    async def _settle(self) -> None:
        until = time.perf_counter() + self._settle_s
        while time.perf_counter() < until:
            await self._times(16, 8)

    async def _sample(self, measure: Measure) -> float:
        began = time.perf_counter()
        streams = await asyncio.gather(
            *(
                self._times(measure.prompt_tokens, measure.decode_tokens + 1)
                for _ in range(measure.num_streams)
            )
        )
        if not measure.decode_tokens:
            return measure.prompt_tokens / (streams[0][0] - began)
        started = max(times[0] for times in streams)
        ended = max(times[-1] for times in streams)
        num_decoded = sum(sum(moment > started for moment in times) for times in streams)
        return num_decoded / (ended - started)

    async def _times(self, prompt_tokens: int, num_tokens: int) -> list[float]:
        """Return when each token of an answer to a fresh random prompt came."""
        prompt = torch.randint(
            self._vocab_size // 10, self._vocab_size, (prompt_tokens,), generator=self._generator
        )
        params = SamplingParams(max_tokens=num_tokens, temperature=0)
        stream = self._handle.client.generate(prompt.tolist(), params)
        return [time.perf_counter() async for _ in stream]


class Samples:
    """What was measured by now: a round's figures by way and number of neighbours."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        is_there = path is not None and path.exists()
        self._by_turn: dict[str, dict[str, float]] = (
            json.loads(path.read_text()) if path is not None and is_there else {}
        )

    def has(self, way: str, busy: int, turn: int) -> bool:
        return f"{way}/{busy}/{turn}" in self._by_turn

    def add(self, way: str, busy: int, turn: int, figures: dict[str, float]) -> None:
        self._by_turn[f"{way}/{busy}/{turn}"] = figures
        if self._path is not None:
            self._path.write_text(json.dumps(self._by_turn))

    def median(self, way: str, busy: int, measure: str) -> float | None:
        taken = [
            figures[measure]
            for key, figures in self._by_turn.items()
            if key.startswith(f"{way}/{busy}/")
        ]
        return round(statistics.median(taken), 1) if taken else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured beside what."""

    ways: list[str]
    variant: str
    cache_dir: Path
    busy: list[int]  # numbers of neighbours
    duty: float  # the share of the time that each is busy
    rounds: int
    limit_s: float  # after which no other turn begins

    async def measure(self, samples: Samples) -> None:
        """Measure every way beside every number of neighbours, in turns."""
        until = time.monotonic() + self.limit_s
        engines: dict[str, RunningEngine] = {}
        try:
            for way in self.ways:
                engines[way] = await RunningEngine.start(WAYS[way], self.variant, self.cache_dir)
                await engines[way].measure()  # the first turn warms up
                print(f"loaded: {way}", flush=True)
            for way, number, turn in self._turns(samples):
                if time.monotonic() > until:
                    print(f"stopped after {self.limit_s:g} s; --samples goes on from there")
                    return
                with neighbours(number, self.duty):
                    figures = await engines[way].measure()
                samples.add(way, number, turn, figures)
                told = ", ".join(f"{figure:.1f}" for figure in figures.values())
                print(f"round {turn + 1}, {number} neighbours, {way}: {told}", flush=True)
        finally:
            for engine in engines.values():
                await engine.end()

    def _turns(self, samples: Samples) -> Iterator[tuple[str, int, int]]:
        """Give what is still to be measured: the way, the number of neighbours, the round."""
        for turn in range(self.rounds):
            for number in self.busy:
                for way in self.ways if turn % 2 == 0 else reversed(self.ways):
                    if not samples.has(way, number, turn):
                        yield way, number, turn


@contextlib.contextmanager
def neighbours(number: int, duty: float) -> Iterator[None]:
    """Keep so many processes of one thread busy."""
    command = [sys.executable, "-c", NEIGHBOUR, str(os.getpid()), str(duty)]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for a process that is started meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def rows_of(samples: Samples, ways: list[str], busy: list[int]) -> list[dict[str, Any]]:
    """Return a row for each measure and number of neighbours: a figure for each way, the goal."""
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        alone = samples.median("default", 0, measure.name)
        for number in busy:
            row: dict[str, Any] = {"measure": measure.name, "neighbours": number}
            row |= {way: samples.median(way, number, measure.name) for way in ways}
            # Of prompts none is asked; the same is shown beside them.
            share = GOAL * CORES / (CORES + number)
            row["goal"] = round(share * alone, 1) if alone and number else None
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], ways: list[str]) -> None:
    """Print the rows as a table."""
    table = Table("tokens/s", "neighbours", *ways, "goal")
    for row in rows:
        figures = (row[name] for name in (*ways, "goal"))
        cells = ("–" if figure is None else f"{figure:.1f}" for figure in figures)
        table.add_row(row["measure"], str(row["neighbours"]), *cells)
    Console(width=160).print(table)


def main() -> None:
    """Measure the demo's default branch, or another variant."""
    parser = make_parser(__doc__, default_rounds=ROUNDS)
    parser.add_argument("--variant", help="by default the demo's default branch")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--duty", type=float, default=1.0, help="share that neighbours are busy")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="no turn begins after it")
    parser.add_argument("--samples", type=Path, help="file to keep samples in, and to go on from")
    arguments = parser.parse_args()

    demo = build_demo(default_cache_dir(), [default_branch()], on_progress=lambda *_: None)
    plan = Plan(
        ways=arguments.ways,
        variant=arguments.variant or demo.default_spec,
        cache_dir=demo.cache_dir,
        busy=arguments.busy,
        duty=arguments.duty,
        rounds=arguments.rounds,
        limit_s=arguments.limit_s,
    )
    samples = Samples(arguments.samples)
    load = os.getloadavg()[0]
    asyncio.run(plan.measure(samples))
    rows = rows_of(samples, arguments.ways, arguments.busy)
    show(rows, arguments.ways)
    if arguments.record:
        settings = {
            "variant": plan.variant,
            "rounds": plan.rounds,
            "duty": plan.duty,
            "cores": CORES,
            "load_average_before": round(load, 2),
            "goal": f"{GOAL} × the default alone × cores ÷ (cores + neighbours)",
            "ways": {
                name: {"settings": way.settings, "environment": way.environment}
                for name, way in WAYS.items()
                if name in arguments.ways
            },
        }
        print(record.write("neighbour", settings, rows))


if __name__ == "__main__":
    main()
