"""Checks and measures Tetrad on a GPU, in one command.

    benchmarks/gpu/run [--part NAME …] [--out FOLDER] [--dry]

Each part runs in a process of its own with a time limit; one that fails, crashes or hangs is told
as such, and the next one runs. Progress goes to stderr, a table to stdout, everything to one dated
JSON file, which is written anew after each part. Ends with 0 if every part passed, else with 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu import report
from benchmarks.gpu.parts import ALWAYS, BY_NAME, PARTS
from benchmarks.gpu.runner import run_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.gpu.parts import Part
    from benchmarks.gpu.runner import Outcome

BUDGET_S = 480
RESULTS = Path(__file__).parents[1] / "results"
TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    arguments = parse(sys.argv[1:])
    # An exit like any other, so that the part that runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    file = report.new_file(arguments.out, is_dry=arguments.dry)
    settings = {
        "dry": arguments.dry,
        "parts": arguments.part,
        "budget_s": arguments.budget,
        "commit": arguments.commit,
    }
    outcomes: list[Outcome] = []
    for outcome in run_parts(
        choose(arguments.part),
        budget_s=arguments.budget,
        command_of=partial(command_of, is_dry=arguments.dry),
        on_line=Progress(),
    ):
        outcomes.append(outcome)
        report.write(file, report.make_record(outcomes, settings))
    print(report.table(outcomes, is_dry=arguments.dry))
    print(f"\n{file}")
    return 0 if report.all_is_well(outcomes) else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    names = "\n".join(f"  {part.name:10}{part.about}, {part.limit_s:.0f} s" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/run",
        description=f"{__doc__}\nParts, and the most that each may take:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--part",
        action="append",
        choices=BY_NAME,
        help=f"run this one; may be given again; {ALWAYS} runs in any case; default: all",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--dry", action="store_true", help="run on the CPU, in tiny sizes")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all parts")
    parser.add_argument("--commit", help="to be recorded, where the tree has no git history")
    return parser.parse_args(arguments)


def choose(names: Sequence[str] | None) -> list[Part]:
    """Return the parts to run, in their order."""
    return [part for part in PARTS if not names or part.name in (ALWAYS, *names)]


def command_of(part: Part, file: Path, *, is_dry: bool) -> list[str]:
    """Return what runs a part."""
    command = [sys.executable, "-m", "benchmarks.gpu.part_process", part.name, str(file)]
    return [*command, "--dry"] if is_dry else command


class Progress:
    """Passes on what the parts say, with the seconds since the program began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, name: str, line: str) -> None:
        """Pass on a line."""
        print(f"{time.monotonic() - self._began:6.1f} {name}: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
