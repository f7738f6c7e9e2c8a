"""Part "sanitizer": the kernels on small inputs under compute-sanitizer, for wrong memory accesses.

Slow, and so last: it runs where time is left. Not an error where the program is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.gpu.context import CheckFailedError

if TYPE_CHECKING:
    from benchmarks.gpu.context import Context

KEPT_LINES = 60
FOUND = 86  # the exit code that it is told to give where it found something
PLACES = ("/usr/local/cuda/bin",)


def run(context: Context) -> None:
    """Run the part "kernels" in its small sizes under memcheck; raises where it found something."""
    program = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *PLACES]))
    if program is None or context.is_dry:
        context.save(summary="not run: no compute-sanitizer, or no GPU")
        return
    command = [
        program,
        *("--tool", "memcheck", "--error-exitcode", str(FOUND)),
        *(sys.executable, "-m", "benchmarks.gpu.part_process", "kernels"),
        *(str(context.workspace / "sanitized.json"), "--small"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()[-KEPT_LINES:]
    context.save(returncode=done.returncode, last_lines=lines, summary=lines[-1] if lines else "")
    if done.returncode:
        raise CheckFailedError(f"compute-sanitizer ended with {done.returncode}: {lines[-1:]}")
