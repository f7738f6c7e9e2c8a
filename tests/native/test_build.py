"""Compiling the kernels: what is compiled when, and what is said where that cannot be."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from native import build as build_module
from native.build import (
    FAILED,
    NO_COMPILER,
    OTHER_SYSTEM,
    BuildError,
    build,
    check_system,
    find_compiler,
    main,
)
from native.sources import library_path, source_hash
from tests.native.compilers import HAS_COMPILER, calls_of, write_compiler

ROOT = Path(__file__).parents[2]
IS_FOR_THIS_SYSTEM = sys.platform == "linux" and platform.machine() == "x86_64"
WHY_NOT_HERE = "the C++ kernels are for Linux on x86-64"
ONE_OPERATOR = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
static int64_t width(const torch::stable::Tensor& x) { return x.size(1); }
STABLE_TORCH_LIBRARY(tetrad_build_test, m) { m.def("width(Tensor x) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(tetrad_build_test, CPU, m) { m.impl("width", TORCH_BOX(&width)); }
"""
CALL_IT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
print(torch.ops.tetrad_build_test.width(torch.zeros(2, 7)))
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "one.cpp").write_text("first")
    (folder / "two.cpp").write_text("second")
    return folder


def change(source, name: str, text: str) -> None:
    (source / name).write_text(text)
    source_hash.cache_clear()


needs_this_system = pytest.mark.skipif(not IS_FOR_THIS_SYSTEM, reason=WHY_NOT_HERE)


@needs_this_system
def test_sources_are_compiled_once(source, tmp_path):
    compiler, out = write_compiler(tmp_path), tmp_path / "compiled"
    environment = {"CXX": str(compiler), "PATH": os.environ["PATH"]}
    build(source, out, environment=environment)
    assert list(out.iterdir()) == [library_path(out, source=source)]
    calls = calls_of(compiler)
    assert len(calls) == 3  # each source, and the link
    assert all("-O3" in call and "-march" not in call for call in calls[:2])
    assert "-ltorch_cpu" in calls[2]
    build(source, out, environment=environment)
    assert calls_of(compiler) == calls


@needs_this_system
def test_changed_sources_are_compiled_again_and_the_old_library_goes(source, tmp_path):
    compiler, out = write_compiler(tmp_path), tmp_path / "compiled"
    environment = {"CXX": str(compiler), "PATH": os.environ["PATH"]}
    build(source, out, environment=environment)
    old = library_path(out, source=source)
    change(source, "one.cpp", "changed")
    build(source, out, environment=environment)
    assert list(out.iterdir()) == [library_path(out, source=source)] != [old]


@needs_this_system
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(source, tmp_path):
    last = 'for i in $(seq 40); do echo "line $i"; done; exit 4'
    compiler, out = write_compiler(tmp_path, last=last), tmp_path / "compiled"
    environment = {"CXX": f"{compiler} -v", "PATH": os.environ["PATH"]}
    with pytest.raises(BuildError) as raised:
        build(source, out, environment=environment)
    assert raised.value.exit_code == FAILED
    said = str(raised.value)
    assert f"{compiler} -v" in said
    assert "failed (4)" in said
    assert said.endswith("line 40")
    assert "line 20" not in said
    assert list(out.iterdir()) == []


@needs_this_system
def test_a_library_of_other_sources_stays_where_compiling_fails(source, tmp_path):
    out = tmp_path / "compiled"
    environment = {"CXX": str(write_compiler(tmp_path)), "PATH": os.environ["PATH"]}
    build(source, out, environment=environment)
    before = list(out.iterdir())
    change(source, "one.cpp", "changed")
    environment["CXX"] = str(write_compiler(tmp_path, last="exit 1"))
    with pytest.raises(BuildError):
        build(source, out, environment=environment)
    assert list(out.iterdir()) == before


@needs_this_system
def test_a_compiler_that_is_too_old_is_told_which_would_do(source, tmp_path):
    said = "echo \"g++: error: unrecognized command-line option '-mamx-tile'\"; exit 1"
    environment = {"CXX": str(write_compiler(tmp_path, last=said)), "PATH": os.environ["PATH"]}
    with pytest.raises(BuildError, match="GCC 11 or newer is needed"):
        build(source, tmp_path / "compiled", environment=environment)


@needs_this_system
def test_what_a_build_that_was_killed_left_behind_goes_and_that_of_a_running_one_stays(
    source, tmp_path
):
    out = tmp_path / "compiled"
    left, running = out / "making-left", out / "making-now"
    for folder in (left, running):
        folder.mkdir(parents=True)
        (folder / "one.o").write_text("half")
    two_hours_ago = time.time() - 7200
    os.utime(left, (two_hours_ago, two_hours_ago))
    environment = {"CXX": str(write_compiler(tmp_path)), "PATH": os.environ["PATH"]}
    build(source, out, environment=environment)
    assert not left.exists()
    assert running.exists()


@needs_this_system
def test_a_compiler_that_cannot_be_run_is_named(source, tmp_path):
    compiler = write_compiler(tmp_path)
    compiler.write_bytes(b"\x7fELF, cut short")
    environment = {"CXX": str(compiler), "PATH": os.environ["PATH"]}
    with pytest.raises(BuildError, match=r"pretended-g\+\+ cannot be run: Exec format error"):
        build(source, tmp_path / "compiled", environment=environment)


@needs_this_system
def test_a_place_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"CXX": str(write_compiler(tmp_path)), "PATH": os.environ["PATH"]}
    with pytest.raises(BuildError, match=r"cannot be kept: .*file") as raised:
        build(source, tmp_path / "file" / "compiled", environment=environment)
    assert raised.value.exit_code == FAILED


@needs_this_system
def test_no_sources_are_told(tmp_path):
    environment = {"CXX": str(write_compiler(tmp_path)), "PATH": os.environ["PATH"]}
    with pytest.raises(BuildError, match="sources are not here"):
        build(tmp_path / "none", tmp_path / "compiled", environment=environment)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "no g++ is there; install g++"),
        ({"CXX": ""}, "no g++ is there"),
        ({"CXX": " "}, "CXX is ' ', which is not there"),
        ({"CXX": "no-such-compiler -m64"}, "CXX is 'no-such-compiler -m64', which is not there"),
        ({"CXX": "un'closed"}, "which is not there"),
    ],
)
def test_no_compiler_is_told(environment, told, tmp_path):
    with pytest.raises(BuildError) as raised:
        find_compiler(environment | {"PATH": str(tmp_path)})
    assert told in str(raised.value)
    assert raised.value.exit_code == NO_COMPILER


def test_the_compiler_is_what_cxx_says_with_its_arguments(tmp_path):
    compiler = write_compiler(tmp_path)
    assert find_compiler({"CXX": f"{compiler} -m64"}) == [str(compiler), "-m64"]
    compiler.rename(tmp_path / "g++")
    assert find_compiler({"PATH": str(tmp_path)}) == [str(tmp_path / "g++")]


@pytest.mark.parametrize("place", [("linux", "aarch64"), ("darwin", "x86_64"), ("win32", "AMD64")])
def test_other_systems_are_told(place):
    with pytest.raises(BuildError, match=f"{place[0]} on {place[1]}") as raised:
        check_system(*place)
    assert raised.value.exit_code == OTHER_SYSTEM


def test_the_command_says_why_in_one_line_and_by_its_exit_code(monkeypatch, capsys):
    def fail(tell) -> None:
        raise BuildError("no g++ is there", NO_COMPILER)

    def compile_something(tell) -> None:
        tell("compiling")

    monkeypatch.setattr(build_module, "build", fail)
    assert main() == NO_COMPILER
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(build_module, "build", compile_something)
    assert main() == 0
    assert capsys.readouterr().err == "native.build: compiling\n"


@pytest.mark.slow
@needs_this_system
@pytest.mark.skipif(not HAS_COMPILER, reason="there is no g++")
def test_what_a_real_compiler_makes_is_loaded_and_called(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "one.cpp").write_text(ONE_OPERATOR)
    build(tmp_path / "src", tmp_path / "compiled")
    library = library_path(tmp_path / "compiled", source=tmp_path / "src")
    command = [sys.executable, "-c", CALL_IT, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr
    assert foreign_symbols(library) == []


@pytest.mark.skipif(not library_path().is_file(), reason="the C++ kernels are not compiled")
@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
def test_the_kernels_take_nothing_of_pytorch_but_its_stable_functions():
    """One library then loads in every PyTorch since the oldest."""
    assert foreign_symbols(library_path()) == []


def foreign_symbols(library: Path) -> list[str]:
    """What is undefined and neither a C function of PyTorch's nor of the system's libraries.

    C++ symbols of PyTorch's would be mangled, and would have no version.
    """
    command = ["nm", "--dynamic", "--undefined-only", str(library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in said.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    weak = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    ours = ("aoti_torch_", "torch_")
    system = ("@GLIBC", "@GCC", "@CXXABI")
    return [
        name
        for name in names
        if name not in weak and not name.startswith(ours) and not any(one in name for one in system)
    ]


def test_pytorch_is_found_without_being_imported():
    code = (
        "import sys; from native.build import _find_torch; print(_find_torch());"
        " sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(torch.__file__).parent
