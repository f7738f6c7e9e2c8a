"""What settings say of a CPU's kernels, and how the log tells it."""

from __future__ import annotations

import pytest
import torch
from structlog.testing import capture_logs

from engine.errors import EngineStartError
from engine.execution import cpu_kernels
from service.settings import WorkerSettings
from service.worker.cpu_kernels import choose_cpu_kernels, tell_cpu_kernels, without_failed
from service.worker_protocol.load_attempt import LoadRequest

CPU = torch.device("cpu")


def told(settings: WorkerSettings, device: torch.device = CPU) -> list[dict[str, object]]:
    with capture_logs() as logs:
        tell_cpu_kernels(settings, device)
    return [
        {key: value for key, value in entry.items() if key in ("kernels", "reason")}
        for entry in logs
        if entry["event"] == "cpu_kernels"
    ]


def test_the_log_says_which_kernels_compute_and_why_others_do_not(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    assert told(WorkerSettings()) == [{"kernels": "compiled, AVX-512 bf16"}]
    assert told(WorkerSettings(cpu_kernels="torch")) == [{"kernels": "PyTorch's"}]
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "this CPU lacks avx512_f")
    lacking = {"kernels": "PyTorch's", "reason": "this CPU lacks avx512_f"}
    assert told(WorkerSettings()) == [lacking]


def test_of_a_gpu_the_log_says_nothing():
    assert told(WorkerSettings(cpu_kernels="native"), torch.device("cuda")) == []


def test_those_that_are_asked_for_by_name_must_be_there(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: "this CPU lacks avx512_f")
    with pytest.raises(EngineStartError, match="this CPU lacks avx512_f"):
        choose_cpu_kernels(WorkerSettings(cpu_kernels="native"), CPU)
    with pytest.raises(EngineStartError, match="batch_invariant"):
        choose_cpu_kernels(WorkerSettings(cpu_kernels="native", batch_invariant=True), CPU)


def test_a_rehearsal_of_a_gpu_computes_as_a_gpu_would(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    rehearsal = WorkerSettings(cpu_kernels="native", gpu_rehearsal="9.0")
    assert choose_cpu_kernels(rehearsal, CPU).name == "torch"


def test_where_kernels_in_cpp_failed_an_attempt_asks_for_pytorchs(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "why_not", lambda: None)
    settings = WorkerSettings(variant="owner/name", num_threads=3)
    assert without_failed(settings, LoadRequest()) == settings
    without = without_failed(settings, LoadRequest(excludes_native=True))
    assert without == settings.model_copy(update={"cpu_kernels": "torch"})
    assert choose_cpu_kernels(without, CPU).name == "torch"
