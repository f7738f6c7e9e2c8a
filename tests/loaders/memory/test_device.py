"""Predicted memory, held to numbers worked out by hand."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from engine.attention.kv_cache import kv_block_bytes, resolve_kv_dtype
from engine.config import KVDtype
from loaders.checkpoint.shape import KV_TYPES, read_shape
from loaders.errors import CheckpointError
from loaders.memory import steps
from loaders.memory.device import (
    CPU_PROCESS_BYTES,
    CUDA_CONTEXT_BYTES,
    Demand,
    activation_bytes,
    kv_cache_bytes,
    predicted_memory,
    prepare,
    weight_bytes,
)
from loaders.memory.engine_defaults import BLOCK_SIZE
from loaders.quantization.kernel_rules import DeviceFacts
from tests.models import tiny_llama
from tests.planned import awq_70b, fp16_34b, gptq_7b
from tests.published import CODELLAMA_7B, CODELLAMA_70B

OLD_GPU = DeviceFacts("cuda", (7, 5))  # on which only the reference runs
SHAPE_7B = read_shape(CODELLAMA_7B.config())


def _prepared(variant, device="cuda", **more):
    return prepare(variant.tensors, variant.config, variant.quantization, device, **more)


def test_every_type_of_the_engines_cache_can_be_counted():
    assert set(KV_TYPES) == {kind.value for kind in KVDtype}


@pytest.mark.parametrize("kind", list(KVDtype))
def test_a_token_takes_what_the_engines_cache_makes_of_it(kind):
    model = tiny_llama()
    shape = read_shape(model.config.to_dict())
    assert shape.kv_bytes_per_token(kind.value) * 16 == kv_block_bytes(model.config, 16, kind)


@pytest.mark.parametrize(
    ("context", "users", "kv_dtype", "expected"),
    [
        (4096, 1, None, 257 * 16 * 512 * 1024),  # and the block that stays empty
        (4096, 16, None, 4097 * 16 * 512 * 1024),
        (4096, 1, "fp8", 257 * 16 * 2 * 32 * 32 * 130),
        (1, 4, None, 5 * 16 * 512 * 1024),  # no sequence takes less than a block
        (17, 1, None, 3 * 16 * 512 * 1024),
    ],
)
def test_the_cache_of_7b_in_whole_blocks(context, users, kv_dtype, expected):
    assert kv_cache_bytes(SHAPE_7B, Demand(context, users, kv_dtype), "cuda") == expected


def test_the_cpu_keeps_keys_and_values_in_float32():
    on_cpu = kv_cache_bytes(SHAPE_7B, Demand(4096), "cpu")
    assert on_cpu == 2 * kv_cache_bytes(SHAPE_7B, Demand(4096), "cuda")
    model = tiny_llama().half()
    made = kv_block_bytes(model.config, BLOCK_SIZE, resolve_kv_dtype(model, None))
    assert kv_cache_bytes(read_shape(model.config.to_dict()), Demand(100), "cpu") == 8 * made


def test_activations_of_7b_at_4096_tokens():
    half = 2 * (
        2048 * (5 * 4096 + 3 * 11008)  # a chunk between the layers
        + 2 * 4096 * 32 * 128  # a layer's keys and values, gathered
        + 2 * 4096 * 128  # rotations
    )
    ids = 2048 * steps.INPUT_BYTES
    logits = steps.SAMPLING_BYTES * 32016
    assert activation_bytes(SHAPE_7B, Demand(4096), "cuda") == half + ids + logits


def test_the_reference_multiplies_in_float32():
    variant = gptq_7b()[0]
    (slow,) = _prepared(variant, OLD_GPU).on_devices(Demand(4096))
    (fast,) = _prepared(variant).on_devices(Demand(4096))
    assert slow.activations - fast.activations == 4 * 2048 * (4096 + 11008)


def test_a_short_demand_fills_no_chunk():
    short, long = Demand(64), Demand(2048)
    assert activation_bytes(SHAPE_7B, short, "cuda") < activation_bytes(SHAPE_7B, long, "cuda") / 20


def test_the_parts_of_7b_add_up():
    variant = gptq_7b()[0]
    (found,) = _prepared(variant, OLD_GPU).on_devices(Demand(4096))
    assert found.weights == variant.weight_bytes
    assert found.context == CUDA_CONTEXT_BYTES
    assert found.workspace == 9 * 4096 * 11008  # the reference, on the largest layer
    assert found.total == sum(asdict(found).values())
    assert found.total == found.lasting + found.reserve


def test_what_kernels_share_is_not_counted_again_once_they_are_loaded():
    demand = Demand(4096)
    fast, slow = _prepared(gptq_7b()[0]), _prepared(gptq_7b()[0], OLD_GPU)
    assert fast.on_devices(demand)[0].workspace > 64 * 2**20
    assert fast.once_loaded(demand) == replace(fast.on_devices(demand)[0], workspace=0)
    assert slow.once_loaded(demand) == slow.on_devices(demand)[0]  # unpacks at every step


def test_a_gpu_at_rest_holds_what_is_made_before_any_request():
    demand = Demand(4096)
    prepared = _prepared(gptq_7b()[0])
    full, rest = prepared.on_devices(demand)[0], prepared.at_rest(demand)
    assert rest.weights == full.weights
    assert rest.workspace == full.workspace
    assert rest.activations == 2 * 2 * 4096 * 128  # the rotations
    assert rest.slots == 0
    recorded = steps.START_SAMPLING_BYTES / steps.SAMPLING_BYTES
    assert rest.graphs == pytest.approx(recorded * full.graphs)
    assert prepared.at_rest(Demand(4096, has_graphs=False)).graphs == 0
    assert _prepared(gptq_7b()[0], OLD_GPU).at_rest(demand).workspace == 0


def test_an_engine_that_records_nothing_has_no_graphs():
    weights = _prepared(gptq_7b()[0])
    (recorded,) = weights.on_devices(Demand(4096))
    (eager,) = weights.on_devices(Demand(4096, has_graphs=False))
    assert recorded.graphs > 0
    assert recorded.graph_launches > 0
    assert eager == replace(recorded, graphs=0, graph_launches=0)


def test_a_cpu_has_neither_graphs_nor_tables_of_a_gpu():
    (found,) = _prepared(gptq_7b()[0], "cpu").on_devices(Demand(4096))
    assert (found.graphs, found.graph_launches, found.slots) == (0, 0, 0)


def test_cpu_unpacks_gate_and_up_side_by_side():
    (found,) = _prepared(gptq_7b()[0], "cpu").on_devices(Demand(4096))
    assert found.workspace == 2 * 5 * 4096 * 11008
    assert found.context == CPU_PROCESS_BYTES


def test_two_devices_share_layers_and_keys_equally():
    (variant,) = awq_70b()
    weights = _prepared(variant)
    (whole,) = weights.on_devices(Demand(4096))
    first, last = weights.on_devices(Demand(4096), 2)
    assert first.weights + last.weights == whole.weights
    assert first.kv_cache == last.kv_cache == whole.kv_cache // 2
    table = 32016 * 8192 * 2
    assert last.weights == first.weights + 8192 * 2  # head for embedding, and the last norm
    assert first.weights - table == 40 * (whole.weights - 2 * table - 8192 * 2) // 80
    # Logits come at the end, and what sampling keeps.
    assert first.activations == last.activations - steps.SAMPLING_BYTES * 32016
    assert (first.slots, last.slots) == (0, steps.SLOT_BYTES * 33 * 32016)


def test_more_devices_than_layers_leave_some_without():
    weights = _prepared(gptq_7b()[0])
    shares = weights.on_devices(Demand(4096), 40)
    assert len(shares) == 40
    assert sum(share.weights for share in shares) == weights.num_bytes
    assert sum(share.kv_cache for share in shares) <= kv_cache_bytes(SHAPE_7B, Demand(4096), "cuda")


def test_a_known_cache_takes_the_place_of_the_predicted_one():
    variant = gptq_7b()[0]
    arguments = (variant.tensors, variant.config, variant.quantization, "cpu")
    free = predicted_memory(*arguments, demand=Demand(4096))
    known = predicted_memory(*arguments, demand=Demand(4096), kv_cache=123)
    assert known == replace(free, kv_cache=123)


def test_weights_alone_need_no_config():
    variant = gptq_7b()[0]
    needed = weight_bytes(variant.tensors, variant.quantization, OLD_GPU, backend="auto")
    assert needed == variant.weight_bytes
    packed = weight_bytes(variant.tensors, variant.quantization, "cuda", backend="auto")
    assert packed == _prepared(variant).num_bytes != needed


def test_backends_are_named_most_layers_first():
    assert _prepared(gptq_7b()[0], "cpu").backend == "int4pack"
    assert _prepared(gptq_7b()[4], "cpu").backend == "int8pack"
    assert _prepared(gptq_7b()[0]).backend == "triton"
    assert _prepared(gptq_7b()[0], OLD_GPU).backend == "reference"
    assert _prepared(fp16_34b()[0]).backend == "dense"


def test_what_a_token_reads_is_all_but_the_embedding():
    (variant,) = awq_70b()
    read = _prepared(variant, OLD_GPU).read_per_token
    assert read == variant.weight_bytes - 32016 * 8192 * 2


def test_a_config_without_sizes_is_refused():
    config = {k: v for k, v in CODELLAMA_70B.config().items() if k != "hidden_size"}
    with pytest.raises(CheckpointError, match="hidden_size"):
        prepare({}, config, None, "cuda")
