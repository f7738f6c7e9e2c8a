"""How steps shall run on a GPU, as settings, failures and the device have it."""

from __future__ import annotations

import pytest
import torch

from loaders.quantization.kernel_rules import DeviceFacts
from service.errors import SettingsError
from service.settings import WorkerSettings
from service.worker import gpu_path
from service.worker.gpu_path import resolve_gpu_path
from service.worker_protocol.load_attempt import LoadRequest

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu_path, "has_triton", lambda: True)


def pretend_card(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def resolve(device=CPU, request=None, **settings):
    given = WorkerSettings(variant="owner/name", **settings)
    return resolve_gpu_path(given, request or LoadRequest(), device)


def test_a_cpu_has_its_own_way():
    assert resolve() is None


def test_a_gpu_runs_tritons_kernels_flash_attention_and_graphs(monkeypatch):
    pretend_card(monkeypatch, (9, 0))
    path = resolve(CUDA)
    assert path.facts == DeviceFacts("cuda", (9, 0), True)
    assert (path.step_kernels, path.backends) == ("triton", ("triton",))
    assert path.has_graphs
    assert path.has_flash
    assert (path.unsupported, path.device_note) == (None, "")


def test_a_rehearsal_pretends_the_gpu_that_is_asked_for():
    path = resolve(gpu_rehearsal="12.0")
    assert path.facts.compute_capability == (12, 0)
    assert path.step_kernels == "triton"
    assert path.device_note == " (rehearsing a GPU of 12.0)"


def test_a_rehearsal_needs_a_cpu_and_the_interpreter(monkeypatch):
    with pytest.raises(SettingsError, match="device is cuda:0; set device to cpu"):
        resolve(CUDA, gpu_rehearsal="9.0")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SettingsError, match="TRITON_INTERPRET=1"):
        resolve(gpu_rehearsal="9.0")


@pytest.mark.parametrize(
    ("request_", "lost"),
    [
        (LoadRequest(excluded_backends=("triton",)), {"backends": ()}),
        (LoadRequest(excluded_step_kernels=("triton",)), {"step_kernels": "torch"}),
        (LoadRequest(excludes_graphs=True), {"has_graphs": False}),
        (LoadRequest(excludes_flash=True), {"has_flash": False}),
    ],
)
def test_what_failed_before_is_left_out_and_nothing_else(request_, lost):
    first, next_ = resolve(gpu_rehearsal="9.0"), resolve(request=request_, gpu_rehearsal="9.0")
    changed = {
        name: getattr(next_, name)
        for name in ("backends", "step_kernels", "has_graphs", "has_flash")
        if getattr(next_, name) != getattr(first, name)
    }
    assert changed == lost


def test_what_settings_name_is_taken():
    named = {"step_kernels": "torch", "backend": "reference", "enforce_eager": True}
    path = resolve(gpu_rehearsal="9.0", **named)
    assert (path.step_kernels, path.backends, path.has_graphs) == ("torch", (), False)
    asked = LoadRequest(excluded_step_kernels=("triton",))
    assert resolve(request=asked, gpu_rehearsal="9.0", step_kernels="triton").step_kernels == (
        "triton"
    )


def test_an_old_gpu_runs_none_of_tritons_kernels_and_people_are_told():
    path = resolve(gpu_rehearsal="7.5")
    assert (path.step_kernels, path.backends, path.has_graphs) == ("torch", (), True)
    assert path.unsupported == (
        "without kernel triton and step kernels triton: needs compute capability 8.0, this GPU has"
        " 7.5"
    )


def test_people_are_told_only_of_what_was_left_to_us():
    said = "without step kernels triton: needs compute capability 8.0, this GPU has 7.5"
    assert resolve(gpu_rehearsal="7.5", backend="reference").unsupported == said
    both = {"backend": "reference", "step_kernels": "torch"}
    assert resolve(gpu_rehearsal="7.5", **both).unsupported is None


def test_an_environment_without_triton_is_told_so(monkeypatch):
    monkeypatch.setattr(gpu_path, "has_triton", lambda: False)
    path = resolve(gpu_rehearsal="9.0")
    assert path.step_kernels == "torch"
    assert "needs Triton, which this environment lacks" in path.unsupported
