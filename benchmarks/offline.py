"""Decode and prefill speed of the demo's branches beside stock Transformers, in the same run.

    .venv/bin/python -m benchmarks.offline [SPEC …] [--record]

Every runner has a process of its own. Every round measures them one after the other, so that a
machine that slows down slows all of them; the medians over the rounds are compared. Figures are
tokens a second; ratios are to stock Transformers in float32 and to the faster stock model.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.isolated import IsolatedRunner
from benchmarks.peers import LlamaCpp, StockTransformers
from benchmarks.tetrad import Tetrad
from loaders.cache import default_cache_dir
from loaders.demo import build_demo

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.isolated import Runner

PROMPT_TOKENS = 64
DECODE_TOKENS = 64
PREFILL_TOKENS = 512
STREAMS = 8
ROUNDS = 5
MEASURES = ("decode, 1 stream", f"decode, {STREAMS} streams", f"prefill, {PREFILL_TOKENS} tokens")


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


def compare(spec: str, cache_dir: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Measure one variant on every runner; one row each."""
    runners = [
        IsolatedRunner(Tetrad, spec, cache_dir, STREAMS),
        IsolatedRunner(StockTransformers, spec, cache_dir, torch.float32),
        IsolatedRunner(StockTransformers, spec, cache_dir, torch.bfloat16),
    ]
    if LlamaCpp.is_installed():
        runners.append(IsolatedRunner(LlamaCpp, threads))
    samples: dict[str, list[list[float | None]]] = {runner.name: [] for runner in runners}
    for round_number in range(rounds + 1):
        for runner in runners:
            sample = measure(runner, round_number)
            if round_number:  # the first one warms up
                samples[runner.name].append(sample)
    for runner in runners:
        runner.close()
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
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # the runners' processes read it
    torch.set_num_threads(arguments.threads)

    cache_dir = default_cache_dir()
    demo = build_demo(cache_dir, progress=print)
    specs = arguments.specs or [
        f"{demo.gptq_repo}:{branch}"
        for branch in ("main", "gptq-8bit--1g-actorder_True", "gptq-8bit-64g-actorder_True")
    ]
    rows: list[dict[str, Any]] = []
    for spec in specs:
        rows += compare(spec, cache_dir, arguments.rounds, arguments.threads)
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
