"""What it costs to compare a variant's files with their hashes while it is loaded.

    .venv/bin/python -m benchmarks.verification [--demo-only] [--rounds N] [--threads N] [--record]

The demo, and a random checkpoint of 0.5 GB in one file and in four. Loads take turns: without
hashes (`never`), with all of them (`always`, as the first time) and with those of the small files
only (`changed`, where nothing did); each with the files in the page cache, and read from the disk.
Figures are medians, in seconds. The goal: a load with all hashes takes at most 1.15 times the
longer of two, the load without hashes and the sha256 of the largest file on one core.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import statistics
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import structlog
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks import record
from benchmarks.command_line import make_parser, use_threads
from benchmarks.gpu.checkpoint import write_checkpoint
from benchmarks.gpu.limit import ModelShape
from loaders.cache import default_cache_dir
from loaders.checkpoint.weight_files import INDEX_FILE
from loaders.demo import build_demo
from loaders.demo.branches import default_branch
from loaders.load import load
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loaders.repository.verification import VerifyMode

ROUNDS = 5
GOAL = 1.15
SHAPE = ModelShape(
    num_layers=8,
    hidden_size=2048,
    num_heads=16,
    num_kv_heads=8,
    intermediate_size=8192,
    vocab_size=32_768,
    bits=4,
    group_size=128,
)
NUM_SHARDS = 4
MODES: tuple[VerifyMode, ...] = ("never", "always", "changed")


def measure(name: str, variant: str, cache_dir: Path, rounds: int) -> list[dict[str, Any]]:
    """Load a variant in all modes, in turns; one row each for a warm and a cold page cache."""
    snapshot = open_snapshot(parse_spec(variant), cache_dir=cache_dir, local_files_only=True)
    files = [path.resolve() for path in snapshot.folder.glob("*.safetensors")]
    load_once(variant, cache_dir, "always")  # imports, the record, and what else is done once
    rows = []
    for is_cold in (False, True):
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            seconds["sha256"].append(hash_largest(files))
            for mode in MODES:
                if is_cold:
                    leave_page_cache(files)
                seconds[mode].append(load_once(variant, cache_dir, mode))
        rows.append(summarise(name, files, seconds, is_cold=is_cold))
    return rows


def summarise(
    name: str, files: Sequence[Path], seconds: dict[str, list[float]], *, is_cold: bool
) -> dict[str, Any]:
    """Return the medians, and how they stand to the goal."""
    medians = {what: round(statistics.median(taken), 3) for what, taken in seconds.items()}
    longer = max(medians["never"], medians["sha256"])
    return {
        "variant": name,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "page cache": "cold" if is_cold else "warm",
        **{f"{what}, s": median for what, median in medians.items()},
        "always / longer": round(medians["always"] / longer, 3),
        "changed / never": round(medians["changed"] / medians["never"], 3),
    }


def load_once(variant: str, cache_dir: Path, mode: VerifyMode) -> float:
    """Load a variant and let it go; return the seconds."""
    began = time.perf_counter()
    load(variant, device="cpu", cache_dir=cache_dir, local_files_only=True, verify=mode)
    return time.perf_counter() - began


def hash_largest(files: Sequence[Path]) -> float:
    """Hash the largest file on one core, out of memory; return the seconds."""
    content = max(files, key=lambda file: file.stat().st_size).read_bytes()
    began = time.perf_counter()
    hashlib.sha256(content).hexdigest()
    return time.perf_counter() - began


def leave_page_cache(files: Sequence[Path]) -> None:
    """Have the next reader of files wait for the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS, so that the folder's hashes are known."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def cut(folder: Path, target: Path) -> None:
    """Write a checkpoint of one file anew in several."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors", "SHA256SUMS"))
    weight_map: dict[str, str] = {}
    with safe_open(folder / "model.safetensors", framework="pt") as whole:
        names = sorted(whole.keys())
        for number in range(NUM_SHARDS):
            shard = f"model-{number + 1:05}-of-{NUM_SHARDS:05}.safetensors"
            tensors = {name: whole.get_tensor(name) for name in names[number::NUM_SHARDS]}
            save_file(tensors, target / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, shard)
    (target / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def measure_all(rounds: int, work: Path, *, is_demo_only: bool) -> list[dict[str, Any]]:
    """Measure the demo's default branch, and the random checkpoint in one file and in several."""
    demo = build_demo(default_cache_dir(), [default_branch()], on_progress=print)
    cache = work / "cache"
    rows = measure("demo, 8-bit", demo.default_spec, demo.cache_dir, rounds)
    if is_demo_only:
        return rows
    write_checkpoint(work / "one", SHAPE, max_context=2048)
    write_sums(work / "one")
    rows += measure("random 4-bit, one file", str(work / "one"), cache, rounds)
    cut(work / "one", work / "four")
    write_sums(work / "four")
    return rows + measure("random 4-bit, four files", str(work / "four"), cache, rounds)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line for each row."""
    table = Table(*rows[0], title=f"always / longer should be at most {GOAL}")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=140).print(table)


def main() -> None:
    """Measure all variants, print a table, and write it down where asked."""
    parser = make_parser(__doc__, default_rounds=ROUNDS)
    parser.add_argument("--demo-only", action="store_true", help="leave the random ones out")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with TemporaryDirectory(prefix="tetrad-verification-") as work:
        rows = measure_all(arguments.rounds, Path(work), is_demo_only=arguments.demo_only)
    show(rows)
    if arguments.record:
        settings = {"rounds": arguments.rounds, "goal": GOAL, "threads": torch.get_num_threads()}
        print(record.write("verification", settings, rows))


if __name__ == "__main__":
    main()
