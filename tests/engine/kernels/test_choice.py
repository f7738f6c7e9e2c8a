from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.errors import EngineStartError
from engine.kernels import optional_triton
from engine.kernels.choice import step_kernels
from tests.engine.kernels.poisoned import DEVICE

ROOT = Path(__file__).parents[3]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def say(program: str, **environment: str) -> str:
    """Run a program in a process of its own, where Triton is not interpreted unless told so."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.strip()


def test_kernels_of_both_names_are_had_for_the_device_at_hand():
    pytest.importorskip("triton", reason="Triton is not installed")
    assert step_kernels("torch").name == "torch"
    assert step_kernels("triton").name == "triton"
    assert step_kernels("triton", DEVICE).name == "triton"


def test_without_triton_its_kernels_are_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optional_triton, "is_installed", False)
    with pytest.raises(EngineStartError, match=r"Triton is not installed.*'torch'"):
        step_kernels("triton", CUDA)
    assert step_kernels("torch", CUDA).name == "torch"


def test_interpreted_kernels_are_not_for_a_gpu():
    pytest.importorskip("triton", reason="Triton is not installed")
    if DEVICE.type == "cuda":
        pytest.skip("Triton compiles here")
    with pytest.raises(EngineStartError, match=r"TRITON_INTERPRET is set.*unset it"):
        step_kernels("triton", CUDA)


def test_on_a_cpu_compiled_kernels_are_refused_and_the_interpreter_is_named():
    pytest.importorskip("triton", reason="Triton is not installed")
    refusal = say(
        "import torch\n"
        "from engine.kernels.choice import step_kernels\n"
        "try: step_kernels('triton', torch.device('cpu'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    assert refusal.startswith("EngineStartError")
    assert "TRITON_INTERPRET=1" in refusal


def test_the_references_work_where_triton_is_not_installed():
    said = say(
        "import sys, torch\n"
        "sys.modules['triton'] = None\n"
        "from engine.kernels.choice import step_kernels\n"
        "print(step_kernels('torch').silu_mul(torch.tensor([[0.0, 3.0]])).tolist())\n"
        "try: step_kernels('triton')\n"
        "except Exception as error: print(error)"
    )
    assert said.startswith("[[0.0]]")
    assert "Triton is not installed" in said


def test_where_numbers_of_a_step_begin_in_memory_compiles_nothing_anew():
    """They are slices of what was sent; a kernel compiled in a step holds up every request."""
    pytest.importorskip("triton", reason="Triton is not installed")
    told = say(
        "from engine.kernels.paged_decode import paged_decode, paged_decode_merge\n"
        "from engine.kernels.rotate_and_store import _kernel\n"
        "for kernel in (_kernel, paged_decode, paged_decode_merge):\n"
        "    print(*(each.name for each in kernel.params if each.do_not_specialize_on_alignment))\n"
        "print(*(each.name for each in paged_decode_merge.params if each.do_not_specialize))"
    )
    assert told.splitlines() == ["positions slots", "slots positions", "positions", "splits"]


def test_kernels_modules_are_had_without_triton():
    told = say(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from engine.kernels.choice import step_kernels\n"
        "print(step_kernels('torch').name)"
    )
    assert told == "torch"
