"""What the command lines of several benchmarks have in common."""

from __future__ import annotations

import argparse
import os

import torch


def make_parser(
    description: str | None, *, default_rounds: int | None = None
) -> argparse.ArgumentParser:
    """Return a parser with --threads and --record, and --rounds where there are some."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if default_rounds is not None:
        parser.add_argument("--rounds", type=int, default=default_rounds)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--record", action="store_true", help="write a dated result")
    return parser


def use_threads(count: int) -> None:
    """Let torch use so many threads, in this process and in those that it starts."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
