"""Runs one part in this process: `python -m benchmarks.gpu.part_process NAME FILE [--dry]`.

An exception is left to the interpreter: its last line and exit code 1 are what `runner` reads.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import signal
from pathlib import Path

from benchmarks.gpu.context import Context
from benchmarks.gpu.parts import BY_NAME
from service.doctor.triton_needs import cache_folder


def main() -> None:
    """Run the part, leaving its findings in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=BY_NAME)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--small", action="store_true", help="on the GPU, in a dry run's sizes")
    parser.add_argument("--share", type=share, help="of a part that several processes do: 0/8")
    arguments = parser.parse_args()
    faulthandler.enable()
    # A part that hangs says where, before it ends.
    faulthandler.register(signal.SIGTERM, chain=True)
    if arguments.dry:  # before anything imports Triton, which decides once
        os.environ["TRITON_INTERPRET"] = "1"
    context = Context(
        arguments.file,
        is_dry=arguments.dry,
        is_small=arguments.small,
        share=arguments.share,
    )
    use_writable_cache(context.workspace)
    importlib.import_module(BY_NAME[arguments.name].module).run(context)


def share(text: str) -> tuple[int, int]:
    """Read which of how many."""
    number, _, count = text.partition("/")
    return int(number), int(count)


def use_writable_cache(workspace: Path) -> None:
    """Let Triton keep what it builds with this run's files where its own folder is closed."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        os.environ["TRITON_CACHE_DIR"] = str(workspace / "triton")


if __name__ == "__main__":
    main()
