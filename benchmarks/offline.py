"""Decode and prefill speed of the demo's branches beside stock Transformers, in the same run.

    .venv/bin/python -m benchmarks.offline [SPEC …] [--against CHECKOUT] [--record]

Every runner has a process of its own. They take turns, so that a machine that slows down slows all
of them: figures are median tokens a second, ratios the medians of the ratios turn by turn, to stock
Transformers on the same weights in float32 and in bfloat16. With `--against` they are to the engine
of an older commit instead, of which there is a checkout (`git worktree add`).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.checkout import CheckoutRunner
from benchmarks.command_line import make_parser, use_threads
from benchmarks.isolated import IsolatedRunner
from benchmarks.peers import LlamaCpp, StockTransformers
from benchmarks.tetrad import Tetrad
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import GPTQ_BRANCHES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.isolated import Runner

ROUNDS = 5
BRANCH_NAMES = ("main", "gptq-8bit--1g-actorder_True", "gptq-8bit-64g-actorder_True")  # of the demo


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure: what is asked of every runner, with fresh random prompts."""

    name: str
    num_prompts: int
    prompt_tokens: int
    decode_tokens: int  # 0: the time to the first token is what counts
    samples_per_round: int

    def sample(self, runner: Runner, seed: int) -> float | None:
        """Return tokens a second; None if the runner cannot take so many prompts."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.num_prompts, self.prompt_tokens)
        prompts = torch.randint(1000, 40_000, shape, generator=generator).tolist()
        if self.decode_tokens:
            return runner.decode(prompts, self.decode_tokens)
        return runner.prefill(prompts[0])


MEASURES = (
    Measure("decode, 1 stream", 1, 64, 64, samples_per_round=1),
    Measure("decode, 8 streams", 8, 64, 64, samples_per_round=1),
    Measure("prefill, 512 tokens", 1, 512, 0, samples_per_round=3),
)
STREAMS = max(measure.num_prompts for measure in MEASURES)


def compare(spec: str, cache_dir: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Measure one variant on every runner; one row each, Tetrad's first."""
    runners = [
        IsolatedRunner(Tetrad, spec, cache_dir, STREAMS),
        IsolatedRunner(StockTransformers, spec, cache_dir, torch.float32),
        IsolatedRunner(StockTransformers, spec, cache_dir, torch.bfloat16),
    ]
    if LlamaCpp.is_installed():
        runners.append(IsolatedRunner(LlamaCpp, threads))
    rows: list[dict[str, Any]] = [{"spec": spec, "runner": runner.name} for runner in runners]
    for measure in MEASURES:
        samples = _alternate(measure, runners, rounds)
        for row, taken in zip(rows, samples, strict=True):
            row[measure.name] = None if taken is None else round(statistics.median(taken), 1)
        for name, stock in (("float32", samples[1]), ("bfloat16", samples[2])):
            rows[0][f"{measure.name}: × {name}"] = _ratio(samples[0], stock)
    for runner in runners:
        runner.close()
    return rows


def compare_with(checkout: Path, spec: str, cache_dir: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure one variant with this engine and that of another checkout; a row for each."""
    runners = [
        IsolatedRunner(Tetrad, spec, cache_dir, STREAMS),
        CheckoutRunner(checkout, spec, cache_dir, STREAMS),
    ]
    rows: list[dict[str, Any]] = [{"spec": spec, "runner": runner.name} for runner in runners]
    for measure in MEASURES:
        samples = _alternate(measure, runners, rounds)
        for row, taken in zip(rows, samples, strict=True):
            row[measure.name] = round(statistics.median(taken or [math.nan]), 1)
        rows[0][f"{measure.name}: × before"] = _ratio(*samples)
    for runner in runners:
        runner.close()
    return rows


def _alternate(
    measure: Measure, runners: Sequence[Runner], rounds: int
) -> list[list[float] | None]:
    """Return each runner's samples; the nth ones of all were taken one right after the other."""
    num_samples = rounds * measure.samples_per_round
    turns = [
        [measure.sample(runner, turn) for runner in runners] for turn in range(num_samples + 1)
    ]
    by_runner = zip(*turns[1:], strict=True)  # the first turn warms up
    return [None if None in taken else list(taken) for taken in by_runner]


def _ratio(own: list[float] | None, other: list[float] | None) -> float:
    """Return the median of the ratios turn by turn, so that a slow spell of the machine cancels."""
    if own is None or other is None:
        raise ValueError("both must have been measured")
    pairs = zip(own, other, strict=True)
    return round(statistics.median(mine / theirs for mine, theirs in pairs), 2)


def show(rows: list[dict[str, Any]]) -> None:
    """Print one variant's rows as a table."""
    names = [measure.name for measure in MEASURES]
    table = Table("runner", *names, title=rows[0]["spec"])
    for row in rows:
        table.add_row(row["runner"], *(_cell(row, name) for name in names))
    Console(width=160).print(table)


def _cell(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    text = f"{row[name]:.1f}"
    others = ("float32", "bfloat16", "before")
    if ratios := [
        f"{row[key]}× {other}" for other in others if (key := f"{name}: × {other}") in row
    ]:
        text += f" ({', '.join(ratios)})"
    return text


def main() -> None:
    """Measure the named variants, or the demo's."""
    parser = make_parser(__doc__, default_rounds=ROUNDS)
    parser.add_argument("specs", nargs="*", help="variants; by default the demo's")
    parser.add_argument("--against", type=Path, help="checkout of an older commit")
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    cache_dir = default_cache_dir()
    branches = [branch for branch in GPTQ_BRANCHES if branch.name in BRANCH_NAMES]
    demo = build_demo(cache_dir, branches, on_progress=print)
    specs = arguments.specs or [f"{demo.gptq_repo}:{name}" for name in BRANCH_NAMES]
    rows: list[dict[str, Any]] = []
    for spec in specs:
        if arguments.against is None:
            compared = compare(spec, cache_dir, arguments.rounds, arguments.threads)
        else:
            compared = compare_with(arguments.against, spec, cache_dir, arguments.rounds)
        show(compared)
        rows += compared
    if arguments.record:
        settings = {
            "rounds": arguments.rounds,
            "measures": [dataclasses.asdict(measure) for measure in MEASURES],
        }
        if arguments.against is not None:
            settings["against"] = record.commit_of(arguments.against)
        print(record.write("offline", settings, rows))


if __name__ == "__main__":
    main()
