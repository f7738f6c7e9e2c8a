"""A compiler for tests that only writes down what it is asked, and whether a real one is there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

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
