"""No kernel spills or asks for more than a card has; the committed table says what each takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu.kernel_table import (
    Compiled,
    Row,
    aligned,
    differences,
    faults,
    read_resources,
    render,
)

ROOT = Path(__file__).parents[3]
SMALL = Compiled(registers=32, shared_bytes=8192, spilled_bytes=0, cubin_bytes=7664)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # about a minute of two cores that do nothing else
def test_every_kernel_compiles_as_the_committed_table_says():
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.kernel_table"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")


def test_interpreted_kernels_are_not_compiled():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.kernel_table"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert "unset it" in finished.stderr


def test_a_spill_and_too_much_shared_memory_are_faults_where_the_card_has_less():
    spilling = Compiled(registers=255, shared_bytes=0, spilled_bytes=16, cubin_bytes=1)
    wide = Compiled(registers=32, shared_bytes=120 * 1024, spilled_bytes=0, cubin_bytes=1)
    rows = [Row("one", 4, {80: spilling, 90: SMALL}), Row("two", 4, {80: wide, 86: wide, 90: wide})]
    assert faults(rows) == [
        "one on sm_80 spills 16 bytes a thread",
        "two on sm_86 needs 122880 bytes of shared memory of 101376",
    ]


def test_the_table_has_a_line_a_case_and_no_figures_where_it_is_not_for_a_card(tmp_path):
    text = render("3.7.1", [Row("add_norm 576", 2, dict.fromkeys((89, 90, 100, 120), SMALL))])
    figures = "32 / 8192 / 7664"
    assert text.splitlines()[-1] == (
        f"| add_norm 576 | 2 |  |  | {figures} | {figures} | {figures} | {figures} |"
    )


def test_a_table_that_is_missing_or_stale_says_how_to_write_it(tmp_path):
    table = tmp_path / "kernels-triton-3.7.1.md"
    [missing] = differences(table, "one\ntwo\n")
    assert "--write" in missing
    table.write_text("one\nthree\n", encoding="utf-8")
    first, *lines = differences(table, "one\ntwo\n")
    assert "--write" in first
    assert lines == ["- three", "+ two"]
    assert differences(table, "one\nthree\n") == []


def test_resources_are_read_from_what_cuobjdump_says():
    said = "Function _kernel:\n  REG:36 STACK:8 SHARED:1024 LOCAL:16 CONSTANT[0]:424 TEXTURE:0\n"
    assert read_resources(said) == (36, 24)
    with pytest.raises(ValueError, match="nothing about registers"):
        read_resources("cuobjdump fatal")


def test_pointers_are_aligned_and_numbers_that_are_said_to_be():
    signature = {"x": "*fp16", "rows": "i32", "width": "i32:16", "stride": "i32"}
    case = SimpleNamespace(signature=signature, aligned=("stride",))
    assert list(aligned(case)) == [(0,), (2,), (3,)]
