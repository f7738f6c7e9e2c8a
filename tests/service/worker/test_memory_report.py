"""What is measured of a GPU is what was predicted: a GPU at rest, with the kernels that it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from engine.attention.kv_cache import kv_block_bytes
from engine.config import EngineConfig, KVDtype
from loaders.memory import steps
from service.worker.memory_report import MemoryMeter, compare
from tests.planned import gptq_7b
from tests.published import CODELLAMA_7B

CUDA = torch.device("cuda")
BEFORE, CACHED = 10**6, 10**9


class Allocator:
    """PyTorch's, as far as it tells what it has taken from the driver."""

    def __init__(self) -> None:
        self.used, self.cached = BEFORE, 0

    def memory_reserved(self, device: torch.device) -> int:
        return self.used + self.cached

    def empty_cache(self) -> None:
        self.cached = 0


@pytest.fixture
def allocator(monkeypatch):
    made = Allocator()
    monkeypatch.setattr(torch.cuda, "memory_reserved", made.memory_reserved)
    monkeypatch.setattr(torch.cuda, "empty_cache", made.empty_cache)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return made


def report(allocator, *, backend="triton", used=0, **more):
    """Load a model of 7B, have it take so much, and compare."""
    variant = gptq_7b()[0]
    model = SimpleNamespace(
        device=CUDA, dtype=torch.float16, config=LlamaConfig(**CODELLAMA_7B.config())
    )
    found = SimpleNamespace(
        model=model,
        tensors=variant.tensors,
        quantization=variant.quantization,
        provenance=SimpleNamespace(backend=backend, num_offloaded=0),
    )
    sizes = {"max_num_seqs": 32, "max_num_batched_tokens": 2048, "max_model_len": 4096}
    config = EngineConfig(**sizes, num_blocks=256, kv_dtype=KVDtype.FLOAT16, **more)
    meter = MemoryMeter(CUDA)
    allocator.used, allocator.cached = BEFORE + used, CACHED
    return compare(meter, found, config, backend="auto")


def test_what_the_allocator_keeps_for_later_is_not_measured(allocator):
    told = report(allocator, used=5_000_000_000)
    unseen = told.breakdown["context"] + told.breakdown["graph_launches"]
    assert told.measured == 5_000_000_000 + unseen


def test_what_no_request_has_asked_for_is_not_predicted(allocator):
    told = report(allocator)
    config = LlamaConfig(**CODELLAMA_7B.config())
    assert told.breakdown["slots"] == 0
    assert told.breakdown["activations"] == 2 * 2 * 4096 * 128  # the table of rotations
    assert told.breakdown["graphs"] == steps.START_SAMPLING_BYTES * 32 * 32016
    assert told.kv_cache == 257 * kv_block_bytes(config, 16, KVDtype.FLOAT16)
    assert told.predicted == sum(told.breakdown.values())


def test_graphs_count_where_they_are_recorded(allocator):
    eager = report(allocator, enforce_eager=True).breakdown
    assert (eager["graphs"], eager["graph_launches"]) == (0, 0)
    assert report(allocator, is_batch_invariant=True).breakdown["graphs"] == 0


def test_kernels_that_failed_are_not_those_that_are_predicted(allocator):
    fast, slow = report(allocator), report(allocator, backend="reference")
    assert fast.breakdown["workspace"] > 0
    assert slow.breakdown["workspace"] == 0  # the reference unpacks while it multiplies
    assert slow.breakdown["weights"] == gptq_7b()[0].weight_bytes
