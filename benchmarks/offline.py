"""Decode and prefill speed of the demo's branches beside stock Transformers, in the same run.

    .venv/bin/python -m benchmarks.offline [SPEC …] [--record]

Every round measures all runners one after the other, so that a machine that slows down slows all
of them; the medians over the rounds are compared. Figures are tokens a second; ratios are to the
faster stock model.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.peers import LlamaCpp, StockTransformers, stock_model
from engine.client import EngineClient
from engine.config import EngineConfig
from engine.core import Engine
from engine.sampling_params import SamplingParams
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.load import load

if TYPE_CHECKING:
    from pathlib import Path

PROMPT_TOKENS = 64
DECODE_TOKENS = 64
PREFILL_TOKENS = 512
STREAMS = 8
ROUNDS = 5
MEASURES = ("decode, 1 stream", f"decode, {STREAMS} streams", f"prefill, {PREFILL_TOKENS} tokens")


class Runner(Protocol):
    """Something that can be timed."""

    name: str

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        """Return generated tokens a second, all prompts together."""

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""


class Tetrad:
    """Tetrad's engine, without HTTP."""

    def __init__(self, spec: str, cache_dir: Path) -> None:
        loaded = load(spec, device="cpu", cache_dir=cache_dir)
        self.name = f"Tetrad ({loaded.provenance.backend})"
        config = EngineConfig(
            max_num_seqs=STREAMS, max_num_batched_tokens=2048, max_model_len=2048, num_blocks=1024
        )
        self._client = EngineClient(Engine(loaded.model, config))
        self._client.start()

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return generated tokens a second once all streams have their first token."""
        return asyncio.run(self._decode(prompts, num_tokens))

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""
        started = time.perf_counter()
        asyncio.run(self._times(prompt, 1))
        return len(prompt) / (time.perf_counter() - started)

    async def _decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        streams = await asyncio.gather(*(self._times(p, num_tokens + 1) for p in prompts))
        started = max(times[0] for times in streams)
        ended = max(times[-1] for times in streams)
        num_decoded = sum(sum(moment > started for moment in times) for times in streams)
        return num_decoded / (ended - started)

    async def _times(self, prompt: list[int], num_tokens: int) -> list[float]:
        params = SamplingParams(max_tokens=num_tokens, temperature=0)
        stream = self._client.generate(prompt, params)
        return [time.perf_counter() async for _ in stream]

    def close(self) -> None:
        """End the engine's thread."""
        self._client.stop()


def measure(runner: Runner, seed: int) -> list[float | None]:
    """Take one sample of each measure, with fresh random prompts."""
    generator = torch.Generator().manual_seed(seed)

    def prompt(length: int) -> list[int]:
        return torch.randint(1000, 40_000, (length,), generator=generator).tolist()

    return [
        runner.decode([prompt(PROMPT_TOKENS)], DECODE_TOKENS),
        runner.decode([prompt(PROMPT_TOKENS) for _ in range(STREAMS)], DECODE_TOKENS),
        runner.prefill(prompt(PREFILL_TOKENS)),
    ]


def compare(spec: str, cache_dir: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure one variant on every runner; one row each."""
    tetrad = Tetrad(spec, cache_dir)
    stock = [
        StockTransformers(
            stock_model(spec, cache_dir, dtype),
            f"Transformers {str(dtype).removeprefix('torch.')}",
        )
        for dtype in (torch.float32, torch.bfloat16)
    ]
    runners: list[Runner] = [tetrad, *stock]
    if LlamaCpp.is_installed():
        runners.append(LlamaCpp(torch.get_num_threads()))
    samples: dict[str, list[list[float | None]]] = {runner.name: [] for runner in runners}
    for round_number in range(rounds + 1):
        for runner in runners:
            sample = measure(runner, round_number)
            if round_number:  # the first one warms up
                samples[runner.name].append(sample)
    tetrad.close()
    rows = [{"spec": spec, "runner": name, **_medians(taken)} for name, taken in samples.items()]
    for name in MEASURES:
        best = max(row[name] for row in rows if row["runner"].startswith("Transformers"))
        float32 = next(row[name] for row in rows if row["runner"] == "Transformers float32")
        rows[0][f"{name}: × float32"] = round(rows[0][name] / float32, 2)
        rows[0][f"{name}: × best stock"] = round(rows[0][name] / best, 2)
    return rows


def _medians(taken: list[list[float | None]]) -> dict[str, float | None]:
    medians: dict[str, float | None] = {}
    for name, column in zip(MEASURES, zip(*taken, strict=True), strict=True):
        values = [value for value in column if value is not None]
        medians[name] = round(statistics.median(values), 1) if values else None
    return medians


def show(rows: list[dict[str, Any]]) -> None:
    """Print one variant's rows as a table."""
    table = Table("runner", *MEASURES, title=rows[0]["spec"])
    for row in rows:
        table.add_row(row["runner"], *(_cell(row, name) for name in MEASURES))
    Console(width=160).print(table)


def _cell(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    text = f"{row[name]:.1f}"
    if f"{name}: × best stock" in row:
        text += f" ({row[f'{name}: × float32']}× float32, {row[f'{name}: × best stock']}× best)"
    return text


def main() -> None:
    """Measure the named variants, or the demo's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("specs", nargs="*", help="variants; by default the demo's")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    cache_dir = default_cache_dir()
    demo = build_demo(cache_dir, progress=print)
    specs = arguments.specs or [
        f"{demo.gptq_repo}:{branch}"
        for branch in ("main", "gptq-8bit--1g-actorder_True", "gptq-8bit-64g-actorder_True")
    ]
    rows: list[dict[str, Any]] = []
    for spec in specs:
        rows += compare(spec, cache_dir, arguments.rounds)
        show(rows[-len([row for row in rows if row["spec"] == spec]) :])
    if arguments.record:
        settings = {
            "prompt_tokens": PROMPT_TOKENS,
            "decode_tokens": DECODE_TOKENS,
            "prefill_tokens": PREFILL_TOKENS,
            "streams": STREAMS,
            "rounds": arguments.rounds,
        }
        print(record.write("offline", settings, rows))


if __name__ == "__main__":
    main()
