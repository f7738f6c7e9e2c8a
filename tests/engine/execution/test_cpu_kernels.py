"""Which kernels a CPU computes with: what is asked for, and what can be."""

from __future__ import annotations

import pytest
import torch

from engine.errors import EngineStartError
from engine.execution import cpu_kernels
from engine.execution.cpu_kernels import CpuKernels, resolve_cpu_kernels

CPU = torch.device("cpu")


def let_be(monkeypatch, why: str | None) -> None:
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: why)


def resolve(asked: str, *, is_batch_invariant: bool = False) -> CpuKernels:
    return resolve_cpu_kernels(CPU, asked, is_batch_invariant=is_batch_invariant)


def test_what_can_be_used_is(monkeypatch):
    let_be(monkeypatch, None)
    assert resolve("auto") == resolve("native") == CpuKernels("native")
    assert str(resolve("auto")) == "compiled, AVX-512 bf16"
    assert resolve("torch") == CpuKernels("torch")


def test_auto_takes_pytorchs_and_says_why(monkeypatch):
    let_be(monkeypatch, "this CPU lacks avx512_f")
    assert resolve("auto") == CpuKernels("torch", "this CPU lacks avx512_f")
    assert str(resolve("auto")) == "PyTorch's"


def test_those_that_are_asked_for_by_name_and_cannot_be_used_are_refused(monkeypatch):
    let_be(monkeypatch, "the C++ kernels are not compiled; install g++")
    with pytest.raises(EngineStartError) as raised:
        resolve("native")
    assert str(raised.value) == (
        "cpu_kernels is 'native': the C++ kernels are not compiled; install g++; 'auto' takes"
        " PyTorch's instead"
    )


def test_batch_invariance_is_pytorchs(monkeypatch):
    let_be(monkeypatch, None)
    assert resolve("torch", is_batch_invariant=True) == CpuKernels("torch")
    chosen = resolve("auto", is_batch_invariant=True)
    assert chosen.name == "torch"
    assert "batch_invariant" in (chosen.reason or "")
    with pytest.raises(EngineStartError, match="batch_invariant computes row by row"):
        resolve("native", is_batch_invariant=True)


@pytest.mark.parametrize("asked", ["auto", "native", "torch"])
def test_a_gpu_has_none_whatever_is_asked(asked, monkeypatch):
    let_be(monkeypatch, None)
    chosen = resolve_cpu_kernels(torch.device("cuda"), asked, is_batch_invariant=False)
    assert chosen.name == "torch"
