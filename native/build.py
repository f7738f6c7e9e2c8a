"""Compiles the kernels: python -m native.build

With g++, or with what CXX names, against the installed PyTorch. Where they are compiled already, it
does nothing. Exit codes: 0 compiled, now or before; 1 the compiler failed, or its work could not be
written; 2 there is no compiler; 3 the kernels are not for this system.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from native.sources import (
    COMPILE_FLAGS,
    COMPILED,
    LIBRARIES,
    LINK_FLAGS,
    SOURCE,
    library_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FAILED, NO_COMPILER, OTHER_SYSTEM = 1, 2, 3
_SHOWN_LINES = 15  # of what the compiler said
_TOO_OLD = "it is too old for them: GCC 11 or newer is needed"
_LEFT_BEHIND_S = 3600.0  # no compiler takes so long


class BuildError(Exception):
    """The kernels could not be compiled."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def build(
    source: Path = SOURCE,
    compiled: Path = COMPILED,
    *,
    environment: Mapping[str, str] = os.environ,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Compile the sources into a library in the folder, unless it is there already.

    Libraries of other sources are removed from the folder once that is done. tell: gets a line
    before the compiler begins. Raises BuildError.
    """
    library = library_path(compiled, source=source)
    if library.is_file():
        return
    check_system(sys.platform, platform.machine())
    torch = _find_torch()
    compiler = find_compiler(environment)
    tell(f"compiling the CPU kernels with {shlex.join(compiler)}")
    try:
        compiled.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=compiled) as name:
            made = _compile(compiler, sorted(source.glob("*.cpp")), torch, Path(name))
            made.replace(library)
        for other in compiled.glob("kernels-*.so"):
            if other != library:
                other.unlink(missing_ok=True)
        _remove_left_behind(compiled)
    except OSError as error:
        raise BuildError(f"what is compiled cannot be kept: {error}", FAILED) from error


def _remove_left_behind(compiled: Path) -> None:
    """Remove what builds that were killed had made."""
    for folder in compiled.glob("making-*"):
        if time.time() - folder.stat().st_mtime > _LEFT_BEHIND_S:
            shutil.rmtree(folder, ignore_errors=True)


def check_system(system: str, machine: str) -> None:
    """Raise BuildError where nothing that is compiled could run."""
    if system != "linux" or machine != "x86_64":
        reason = f"they are for Linux on x86-64, and this is {system} on {machine}"
        raise BuildError(reason, OTHER_SYSTEM)


def find_compiler(environment: Mapping[str, str]) -> list[str]:
    """Return the compiler's command. Raises BuildError where there is none."""
    asked = environment.get("CXX") or "g++"
    try:
        command, *options = shlex.split(asked) or [asked]
    except ValueError:
        command, options = asked, []
    found = shutil.which(command, path=environment.get("PATH", os.defpath))
    if found is not None:
        return [found, *options]
    reason = (
        f"CXX is {asked!r}, which is not there" if environment.get("CXX") else "no g++ is there"
    )
    raise BuildError(f"{reason}; install g++ (Debian: apt-get install g++)", NO_COMPILER)


def _find_torch() -> Path:
    """Return PyTorch's folder, without importing it, which takes seconds."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("PyTorch is not installed here; run scripts/setup", FAILED)
    return Path(spec.submodule_search_locations[0])


def _compile(compiler: list[str], sources: Sequence[Path], torch: Path, folder: Path) -> Path:
    """Compile each source by itself, as many at once as there are CPUs, and link them."""
    if not sources:
        raise BuildError("their sources are not here; install Tetrad anew", FAILED)
    compile_one = partial(_compile_one, compiler, torch, folder)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "kernels.so"
    places = [f"-L{torch / 'lib'}", *LIBRARIES]
    _run([*compiler, *LINK_FLAGS, *map(str, objects), *places, "-o", str(library)])
    return library


def _compile_one(compiler: list[str], torch: Path, folder: Path, source: Path) -> Path:
    compiled = folder / f"{source.stem}.o"
    includes = ["-isystem", str(torch / "include")]
    _run([*compiler, *COMPILE_FLAGS, *includes, "-c", str(source), "-o", str(compiled)])
    return compiled


def _run(command: list[str]) -> None:
    """Run a compiler. Raises BuildError with the end of what it said."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}", FAILED) from error
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-_SHOWN_LINES:])
        hint = f"\n{_TOO_OLD}" if "-mamx" in said else ""
        raise BuildError(f"{shlex.join(command)} failed ({done.returncode}):\n{said}{hint}", FAILED)


def main() -> int:
    """Compile; return the exit code."""
    try:
        build(tell=_say)
    except BuildError as error:
        _say(f"no CPU kernels are compiled, so that PyTorch's serve: {error}")
        return error.exit_code
    return 0


def _say(text: str) -> None:
    print(f"native.build: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
