"""`scripts/setup` compiles the kernels where there is a compiler, and goes on without one."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.compilers import calls_of, write_compiler
from tests.native.test_build import needs_this_system

ROOT = Path(__file__).parents[2]
SCRIPTS = ("bash", "cat", "dirname", "sed", "sha256sum", "sh")  # programs that the script calls
# The environment that is there already, under the checkout's name for it.
PYTHON = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose environment is made, with sources for a compiler that only pretends."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    (checkout / "native" / "src").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup"):
        shutil.copy(ROOT / name, checkout / name)
    for name in ("__init__.py", "build.py", "sources.py"):
        shutil.copy(ROOT / "native" / name, checkout / "native")
    (checkout / "native/src/one.cpp").write_text("first")
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    inputs = ("pyproject.toml", "constraints.txt", "scripts/setup")
    stamp = hashlib.sha256(b"".join((checkout / name).read_bytes() for name in inputs)).hexdigest()
    (checkout / ".venv" / ".tetrad-setup").write_text(f"{stamp}  -\n")
    return checkout


@pytest.fixture
def programs(tmp_path):
    """A folder for PATH that has what the script calls, and no compiler."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in SCRIPTS:
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def setup(checkout: Path, programs: Path) -> str:
    """Run the script with these programs; return what it says."""
    done = subprocess.run(
        [checkout / "scripts" / "setup"],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def compiled(checkout: Path) -> list[str]:
    return sorted(path.name for path in (checkout / "native").glob("compiled/*"))


@needs_this_system
def test_without_a_compiler_it_says_so_in_one_line_and_goes_on(checkout, programs):
    said = setup(checkout, programs)
    assert said.count("\n") == 1
    assert "no g++ is there; install g++" in said
    assert compiled(checkout) == []


@needs_this_system
def test_a_compiler_that_comes_later_is_used_and_only_once(checkout, programs, tmp_path):
    setup(checkout, programs)
    compiler = write_compiler(tmp_path)
    (programs / "g++").symlink_to(compiler)
    assert "compiling the CPU kernels with" in setup(checkout, programs)
    assert len(compiled(checkout)) == 1
    assert setup(checkout, programs) == ""
    assert len(calls_of(compiler)) == 2  # the source, and the link


@needs_this_system
def test_changed_sources_are_compiled_anew(checkout, programs, tmp_path):
    (programs / "g++").symlink_to(write_compiler(tmp_path))
    setup(checkout, programs)
    before = compiled(checkout)
    (checkout / "native/src/one.cpp").write_text("changed")
    setup(checkout, programs)
    assert len(compiled(checkout)) == 1
    assert compiled(checkout) != before


@needs_this_system
def test_a_compiler_that_fails_stops_nothing(checkout, programs, tmp_path):
    (programs / "g++").symlink_to(write_compiler(tmp_path, last="echo too old; exit 1"))
    assert "failed (1):\ntoo old" in setup(checkout, programs)
