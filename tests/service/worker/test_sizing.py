"""How large the KV cache of a GPU is made: what weights, steps and other programs leave."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from loaders.memory.device import MemoryBreakdown
from service.settings import WorkerSettings
from service.worker import sizing
from service.worker.sizing import resolve_kv_cache_bytes

CUDA = torch.device("cuda", 0)


@pytest.fixture
def half_free(monkeypatch):
    """A GPU of 2 000 bytes, half of them taken."""
    monkeypatch.setattr(sizing, "free_device_bytes", lambda device: 1000)
    facts = SimpleNamespace(total_memory=2000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)


@pytest.mark.parametrize(
    ("reserved", "cache"),
    [
        (0, 800),  # a tenth of the GPU stays free in any case
        (150, 800),  # which is enough for these steps
        (300, 700),
        (2000, 0),
    ],
)
def test_the_cache_leaves_what_steps_need(half_free, reserved, cache):
    found = resolve_kv_cache_bytes(WorkerSettings(), CUDA, 10, reserve_bytes=reserved)
    assert found == cache


def test_a_size_that_is_asked_for_is_taken_as_it_is(half_free):
    settings = WorkerSettings(kv_cache_size=950)
    assert resolve_kv_cache_bytes(settings, CUDA, 10, reserve_bytes=500) == 950


def test_the_log_tells_what_is_left_free_for_steps():
    predicted = MemoryBreakdown(
        weights=1,
        kv_cache=2,
        activations=30,
        workspace=40,
        graphs=50,
        graph_launches=5,
        slots=60,
        context=7,
    )
    assert sizing._told(predicted) == {
        "step_activation_bytes": 30,
        "step_workspace_bytes": 40,
        "graph_bytes": 55,
        "sampling_table_bytes": 60,
    }
    assert sum(sizing._told(predicted).values()) == predicted.reserve
    assert sizing._told(None) == {}
