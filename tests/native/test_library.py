"""Whether the compiled kernels can be used here, and what is said where not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from native.library import (
    Machine,
    allows_tiles,
    read_machine,
    source_hash,
    why_not,
    why_not_loaded,
    why_not_on,
)
from native.sources import INSTRUCTIONS, library_path

ROOT = Path(__file__).parents[2]
ABLE = Machine(
    system="linux",
    architecture="x86_64",
    instructions=dict.fromkeys(INSTRUCTIONS, True),
    level="AVX512",
    environment={},
    torch_version=(2, 11),
)


def test_a_machine_that_has_all_is_able():
    assert why_not_on(ABLE) is None
    assert why_not_on(dataclasses.replace(ABLE, torch_version=(3, 0))) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architecture": "aarch64"}, "for Linux on x86-64, and this is linux on aarch64"),
        ({"system": "darwin"}, "and this is darwin on x86_64"),
        ({"torch_version": (2, 9)}, "PyTorch 2.9 is too old for the C++ kernels; install 2.11"),
        ({"instructions": {}}, "this CPU lacks avx512_f, avx512_bw, "),
        ({"level": "AVX2"}, "computes at the level AVX2"),
    ],
)
def test_what_a_machine_lacks_is_told(change, told):
    assert told in (why_not_on(dataclasses.replace(ABLE, **change)) or "")


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_each_kind_of_instructions_is_needed(name):
    found = dict(ABLE.instructions) | {name: False}
    assert why_not_on(dataclasses.replace(ABLE, instructions=found)) == f"this CPU lacks {name}"


@pytest.mark.parametrize(
    ("variable", "value", "level", "told"),
    [
        (
            "ATEN_CPU_CAPABILITY",
            "avx2",
            "AVX2",
            "ATEN_CPU_CAPABILITY=avx2 rules AVX-512 out; unset",
        ),
        ("ATEN_CPU_CAPABILITY", "default", "DEFAULT", "ATEN_CPU_CAPABILITY=default rules AVX-512"),
        ("ATEN_CPU_CAPABILITY", "avx512", "AVX512", None),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", "AVX512", "ONEDNN_MAX_CPU_ISA=AVX2 rules products"),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core_vnni", "AVX512", "ONEDNN_MAX_CPU_ISA=avx512_core_vnni"),
        ("DNNL_MAX_CPU_ISA", "AVX512_CORE", "AVX512", "DNNL_MAX_CPU_ISA=AVX512_CORE"),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", "AVX512", None),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", "AVX512", None),
        ("ONEDNN_MAX_CPU_ISA", "ALL", "AVX512", None),
    ],
)
def test_what_variables_rule_out_is_not_used(variable, value, level, told):
    asked = dataclasses.replace(ABLE, environment={variable: value}, level=level)
    said = why_not_on(asked)
    assert said is None if told is None else told in (said or "")


@pytest.mark.parametrize(
    ("instructions", "environment", "allowed"),
    [
        ({"amx_tile": True, "amx_bf16": True}, {}, True),
        ({"amx_tile": True, "amx_bf16": False}, {}, False),
        ({"amx_tile": False, "amx_bf16": True}, {}, False),
        ({}, {}, False),
        ({"amx_tile": True, "amx_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16"}, False),
        ({"amx_tile": True, "amx_bf16": True}, {"DNNL_MAX_CPU_ISA": "AVX2"}, False),
        ({"amx_tile": True, "amx_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, True),
    ],
)
def test_tile_registers_are_used_where_they_are_there_and_not_ruled_out(
    instructions, environment, allowed
):
    asked = dataclasses.replace(ABLE, instructions=instructions, environment=environment)
    assert allows_tiles(asked) is allowed


def test_a_folder_without_a_library_says_what_to_do(tmp_path):
    told = why_not_loaded(tmp_path / "none") or ""
    assert "are not compiled; install g++ if there is none, then run scripts/setup" in told


def test_a_library_of_other_sources_is_not_loaded(tmp_path):
    (tmp_path / "kernels-0123456789abcdef.so").write_text("")
    assert "compiled from other sources; " in (why_not_loaded(tmp_path) or "")


def test_a_library_that_cannot_be_loaded_is_named(tmp_path):
    library = library_path(tmp_path)
    library.write_text("this is no library")
    told = why_not_loaded(tmp_path) or ""
    assert told.startswith(f"{library} cannot be loaded (")
    assert "; delete it, and " in told
    assert "\n" not in told


def test_the_machine_at_hand_is_read():
    machine = read_machine()
    assert machine.system == sys.platform
    assert machine.torch_version >= (2, 11)
    assert machine.environment is os.environ
    assert "avx2" in machine.instructions or machine.architecture != "x86_64"


def test_sources_have_a_hash_whether_or_not_they_are_compiled():
    assert len(source_hash()) == 16
    assert int(source_hash(), 16) >= 0


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_loaded_kernels_are_operators_until_a_variable_rules_them_out():
    code = (
        "import torch; from native.library import why_not; print(why_not());"
        "print(hasattr(torch.ops.tetrad, 'silu_mul'))"
    )
    assert run(code) == "None\nTrue\n"
    masked = run(code, ATEN_CPU_CAPABILITY="avx2")
    assert (
        masked == "ATEN_CPU_CAPABILITY=avx2 rules AVX-512 out; unset ATEN_CPU_CAPABILITY\nFalse\n"
    )


def test_whether_kernels_are_loaded_is_told_without_loading_them():
    code = (
        "from native.library import is_loaded, why_not; print(is_loaded());"
        "print((why_not() is None) == is_loaded())"
    )
    assert run(code) == "False\nTrue\n"


def run(code: str, **variables: str) -> str:
    command, environment = [sys.executable, "-c", code], os.environ | variables
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
