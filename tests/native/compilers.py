"""Compilers for tests: one that only writes down what it is asked, and the real one."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from native.sources import COMPILE_FLAGS, LIBRARIES, LINK_FLAGS, SOURCE

ROOT = Path(__file__).parents[2]
HAS_COMPILER = shutil.which("g++") is not None

_PRETENDED = """#!/bin/sh
echo "$@" >>"{log}"
while [ $# -gt 1 ]; do shift; [ "$1" = -o ] && echo made >"$2"; done
{last}
"""


def write_compiler(folder: Path, *, last: str = "exit 0") -> Path:
    """Write a compiler that makes files of one word; what it is called with goes to `calls`.

    last: the command of the shell that it ends with.
    """
    path = folder / "pretended-g++"
    path.write_text(_PRETENDED.format(log=folder / "calls", last=last), encoding="utf-8")
    path.chmod(0o755)
    return path


def calls_of(compiler: Path) -> list[str]:
    """Return what a pretended compiler was called with, a line each call."""
    log = compiler.with_name("calls")
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def build_emulated(library: Path, *names: str) -> None:
    """Compile sources with tile registers that lie in memory, by the real compiler."""
    torch_folder = Path(torch.__file__).parent
    command = [
        *("g++", *COMPILE_FLAGS, "-DTETRAD_EMULATED_TILES", *LINK_FLAGS),
        *("-isystem", str(torch_folder / "include"), *(str(SOURCE / name) for name in names)),
        *(f"-L{torch_folder / 'lib'}", *LIBRARIES, "-o", str(library)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"


def run_comparison(code: str, *arguments: str) -> None:
    """Run code that compares and then says so, in a process of its own: libraries load but once."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("compared", 0), done.stderr
