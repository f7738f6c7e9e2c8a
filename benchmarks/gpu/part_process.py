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


def main() -> None:
    """Run the part, leaving its findings in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=BY_NAME)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--small", action="store_true", help="on the GPU, in a dry run's sizes")
    arguments = parser.parse_args()
    faulthandler.enable()
    # A part that hangs says where, before it ends.
    faulthandler.register(signal.SIGTERM, chain=True)
    if arguments.dry:  # before anything imports Triton, which decides once
        os.environ["TRITON_INTERPRET"] = "1"
    context = Context(arguments.file, is_dry=arguments.dry, is_small=arguments.small)
    importlib.import_module(BY_NAME[arguments.name].module).run(context)


if __name__ == "__main__":
    main()
