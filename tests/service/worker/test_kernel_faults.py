"""What compilers and drivers say, in an operator's words."""

from __future__ import annotations

import ast
import subprocess

import pytest

from engine.errors import EngineStartError
from service.worker.kernel_faults import explain, explain_words


def test_a_machine_without_a_c_compiler_is_told_to_install_one(monkeypatch, tmp_path):
    """As Triton itself finds out where it builds what starts a kernel."""
    build = pytest.importorskip("triton.runtime.build")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        build._build("launcher", "int x;", str(tmp_path), [], [], [], [])
    assert "install gcc (a C compiler)" in explain(caught.value)
    assert explain_words(f"a step failed: {caught.value}") == explain(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        subprocess.CalledProcessError(1, ["gcc", "launcher.c"]),
        FileNotFoundError(2, "No such file or directory", "/opt/gcc"),
    ],
)
def test_a_compiler_that_fails_is_named(error):
    words = explain(error)
    assert "gcc" in words.partition(";")[0]
    assert "Python's development headers" in words


def test_a_kernel_that_does_not_compile_is_told_by_what_is_wrong_with_it():
    errors = pytest.importorskip("triton.compiler.errors")
    node = ast.parse("x = tl.nonsense(1)").body[0]
    error = errors.CompilationError("x = tl.nonsense(1)", node, "nonsense is not defined")
    assert explain(error) == "a kernel does not compile: nonsense is not defined"


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (
            "Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain.",
            "driver",
        ),
        ("out of resource: shared memory, Required: 132096, Hardware limit: 101376.", "more of"),
        ("CUDA error: no kernel image is available for execution on the device", "another release"),
    ],
)
def test_what_a_driver_says_is_explained(words, meaning):
    assert meaning in explain(RuntimeError(words))


def test_what_is_not_known_is_passed_on_in_one_short_line():
    words = explain(ValueError("width 3 is none\n" + 50 * "where it was\n"))
    assert words == "ValueError: width 3 is none"
    assert len(explain(ValueError("x" * 1000))) < 200
    assert explain_words("nothing known") is None


def test_what_the_engine_says_itself_needs_no_explanation():
    assert explain(EngineStartError("the logits are NaN")) == "the logits are NaN"
