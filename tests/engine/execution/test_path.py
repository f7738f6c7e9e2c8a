from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.errors import EngineStartError
from engine.execution import cpu_kernels
from engine.execution.path import computes_natively, is_eager, resolve_path, work_on
from engine.execution.replayed import ReplayedRecorder
from engine.kernels import choice

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(**changes: Any) -> EngineConfig:
    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "max_model_len": 64, "num_blocks": 8}
    return EngineConfig(**(sizes | changes))


def test_a_cpu_runs_its_own_layers_step_by_step():
    path = resolve_path(CPU, config())
    assert (path.kernels, path.recorder, path.is_overlapped) == (None, None, False)


def test_a_gpus_path_runs_on_a_cpu_where_its_kernels_are_named():
    path = resolve_path(CPU, config(step_kernels="torch"))
    assert path.kernels is not None
    assert path.kernels.name == "torch"
    assert path.recorder is None
    assert not path.is_overlapped


def test_recorded_steps_on_a_cpu_are_a_gpus_steps_replayed():
    path = resolve_path(CPU, config(enforce_eager=False))
    assert path.kernels is not None
    assert path.kernels.name == "torch"
    assert isinstance(path.recorder, ReplayedRecorder)


def test_tritons_kernels_on_a_cpu_are_refused_outside_its_interpreter(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(choice, "is_interpreted", lambda: False)
    with pytest.raises(EngineStartError, match="TRITON_INTERPRET=1"):
        resolve_path(CPU, config(step_kernels="triton"))


def test_batch_invariant_answers_take_neither_kernels_nor_graphs():
    path = resolve_path(CPU, config(is_batch_invariant=True, enforce_eager=False))
    assert (path.kernels, path.recorder) == (None, None)


@pytest.mark.parametrize(
    ("changes", "is_native"),
    [
        ({}, True),
        ({"cpu_kernels": "native"}, True),
        ({"cpu_kernels": "torch"}, False),
        ({"is_batch_invariant": True}, False),
        ({"step_kernels": "torch"}, False),
        ({"enforce_eager": False}, False),
    ],
    ids=str,
)
def test_kernels_in_cpp_compute_a_cpus_own_steps(monkeypatch, changes, is_native):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    assert computes_natively(CPU, config(**changes)) is is_native
    assert resolve_path(CPU, config(**changes)).has_native is is_native
    assert not computes_natively(CUDA, config(**changes))


def test_steps_are_recorded_on_a_gpu_and_not_on_a_cpu_unless_told():
    assert is_eager(CPU, config())
    assert not is_eager(CUDA, config())
    assert is_eager(CUDA, config(enforce_eager=True))
    assert not is_eager(CPU, config(enforce_eager=False))


@pytest.fixture
def devices_set(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Devices that were made the thread's current one."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def test_kernels_are_launched_on_the_gpu_that_the_model_is_on(devices_set: list[torch.device]):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction
    try:
        work_on(torch.device("cuda", 1))
        assert matmul.allow_fp16_reduced_precision_reduction is False
        assert matmul.allow_bf16_reduced_precision_reduction is False
    finally:
        matmul.allow_fp16_reduced_precision_reduction = before
        matmul.allow_bf16_reduced_precision_reduction = True
    assert devices_set == [torch.device("cuda", 1)]


def test_a_cpu_is_nobodys_current_gpu(devices_set: list[torch.device]):
    work_on(CPU)
    assert devices_set == []
