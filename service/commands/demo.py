"""`tetrad demo`: builds the demo's default branch, or all, and says which branches there are."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.text import printable
from service.terminal import progress_line, use_progress_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "demo"


def demo(
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to build it. (TETRAD_CACHE_DIR)")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Build every branch, not only the one served by default.")
    ] = False,
) -> None:
    """Build the demo where it is missing; say where it is, and which branches it has."""
    from loaders.cache import default_cache_dir
    from loaders.demo import build_demo, find_demo
    from loaders.demo.branches import BRANCHES, default_branch
    from loaders.demo.progress import StepsWithPercent
    from loaders.errors import LoadError

    folder = cache_dir or default_cache_dir()
    branches = BRANCHES if every else (default_branch(),)
    try:
        with build_display() as on_progress:
            steps = StepsWithPercent(on_progress)
            built = build_demo(
                folder, branches, on_progress=steps.begin, on_percent_done=steps.note
            )
    except LoadError as error:
        sys.exit(f"tetrad: {error}")
    typer.echo(f"The demo is in {built.cache_dir}. Serve one of its branches by name:")
    for branch in BRANCHES:
        served = " (served by default)" if str(branch) == built.default_spec else ""
        waits = "" if find_demo(folder, [branch]) else " (built when it is named, or by --all)"
        typer.echo(f"  {branch}  {branch.description}{served}{waits}")


@contextmanager
def build_display() -> Iterator[Callable[[str, float | None], None]]:
    """Show how a build goes: a bar in a terminal, else a line for each step."""
    use_progress_line(wanted=True)
    line, said = progress_line(), ""

    def on_progress(step: str, percent: float | None) -> None:
        nonlocal said
        if line is not None:
            line.show(NAME, step, percent)
        elif step != said:
            said = step
            sys.stderr.write(f"tetrad: {printable(step)}\n")

    try:
        yield on_progress
    finally:
        if line is not None:
            line.end(NAME)
