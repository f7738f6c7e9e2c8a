"""What is left free on a GPU for an engine's steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from loaders.memory import steps
from loaders.memory.engine_defaults import MAX_NUM_SEQS
from service.settings import WorkerSettings
from service.worker.step_reserve import facts_of_device, step_reserve
from tests.planned import gptq_7b
from tests.published import CODELLAMA_7B

CONTEXT = 4096


@pytest.fixture(autouse=True)
def ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


def loaded(backend="triton", device="cuda", *, is_eager_only=False, config=None):
    """A model of 7B as it lies on a device, as far as sizing looks at it."""
    variant = gptq_7b()[0]
    model = SimpleNamespace(
        device=torch.device(device),
        dtype=torch.float16,
        config=config or LlamaConfig(**CODELLAMA_7B.config()),
    )
    provenance = SimpleNamespace(backend=backend, is_eager_only=is_eager_only)
    return SimpleNamespace(
        model=model,
        tensors=variant.tensors,
        quantization=variant.quantization,
        provenance=provenance,
    )


def reserve(found, settings=None, *, tokens=2048, has_graphs=True):
    settings = settings or WorkerSettings()
    return step_reserve(
        settings, found, context=CONTEXT, max_num_batched_tokens=tokens, has_graphs=has_graphs
    )


def test_nothing_is_left_free_on_a_cpu():
    assert reserve(loaded(device="cpu")) is None
    assert facts_of_device(torch.device("cpu")).kind == "cpu"


def test_steps_of_as_many_sequences_as_may_run_are_counted():
    few, many = (reserve(loaded(), WorkerSettings(max_num_seqs=n)) for n in (1, 256))
    assert many.activations - few.activations >= 255 * 32016 * steps.SAMPLING_BYTES
    assert many.graphs > few.graphs
    assert many.slots == steps.SLOT_BYTES * 257 * 32016


def test_the_largest_step_is_what_the_settings_allow():
    more = reserve(loaded(), tokens=8192).activations - reserve(loaded()).activations
    assert more == (8192 - 2048) * (2 * (4 * 4096 + 4096 + 3 * 11008) + steps.INPUT_BYTES)


def test_an_engine_that_records_nothing_needs_no_memory_for_graphs():
    eager = reserve(loaded(), has_graphs=False)
    assert (eager.graphs, eager.graph_launches) == (0, 0)
    recorded = reserve(loaded())
    assert recorded.reserve > eager.reserve


def test_what_tritons_kernels_share_was_taken_when_they_were_loaded():
    assert reserve(loaded()).workspace == 0


def test_another_type_of_keys_and_values_is_read_beside_what_attention_sees():
    alike = reserve(loaded(), WorkerSettings(kv_cache_dtype="float16"))
    assert alike == reserve(loaded())
    fp8 = reserve(loaded(), WorkerSettings(kv_cache_dtype="fp8"))
    assert fp8.activations - alike.activations == 16 * 2**20 * (128 + 4) // 128


@pytest.mark.parametrize("backend", ["reference", "stock"])
def test_where_triton_was_left_out_a_layer_is_unpacked_whole(backend):
    found = reserve(
        loaded(backend), WorkerSettings(backend="stock" if backend == "stock" else "auto")
    )
    assert found.workspace == 9 * 4096 * 11008
    assert found.graphs >= found.workspace  # once more, in the graphs' own memory


def test_a_model_whose_sizes_are_not_told_gets_no_prediction():
    nameless = SimpleNamespace(to_dict=dict)
    assert reserve(loaded(config=nameless)) is None


def test_plans_and_engines_count_for_the_same_number_of_sequences():
    assert WorkerSettings().max_num_seqs == MAX_NUM_SEQS
