from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from native import int4, llama_layers
from native.rows import HeadNorm
from native.sources import library_path
from tests.native import kernels, reference
from tests.native.compilers import HAS_COMPILER, build_emulated, run_comparison
from tests.native.llama_steps import HIDDEN, INNER, LENGTHS, Step, make_layer
from tests.native.paged import slots_of
from tests.native.weights import random_int8_weight, random_weight

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = kernels.needed

NUM_LAYERS = 3
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


COMPARE = """
import sys

import torch

from native.llama_layers import LlamaLayers
from tests.native.llama_steps import LENGTHS, Step, make_layer

torch.ops.load_library(sys.argv[1])
torch.manual_seed(1)
for num_planes in (1, 2):
    step = Step([make_layer(num_planes=num_planes, is_sorted=True) for _ in range(2)])
    alone, kept = [], []
    for row in range(len(LENGTHS)):
        one, caches = step.run(
            LlamaLayers, slice(row, row + 1), are_many=True, has_tiles=True
        )
        alone.append(one[0])
        kept.append(caches[-1][step.slots[row]])
    for num_rows in (8, 17, 33, 70):
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            rows = torch.arange(num_rows) % len(LENGTHS)
            got, caches = step.run(LlamaLayers, rows, are_many=True, has_tiles=True)
            without, _ = step.run(LlamaLayers, rows, are_many=True)
            torch.testing.assert_close(got, without, rtol=1e-2, atol=2e-2)
            assert float((got - without).square().mean().sqrt()) < 2e-3
            for place, row in enumerate(rows.tolist()):
                assert torch.equal(got[place], alone[row])
                assert torch.equal(caches[-1][step.slots[row]], kept[row])
print("compared")
"""


def check(step: Step, **others: Any) -> None:
    """Rounding to bfloat16 may go the other way where float32 sums differ in their last bits."""
    (mine, own), (theirs, wanted) = (
        step.run(each, **others) for each in (llama_layers.LlamaLayers, reference.LlamaLayers)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-2)
    assert float((mine - theirs).square().mean().sqrt()) < 2e-3
    for got, expected in zip(own, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("num_planes", [1, 2])
def test_layers_give_what_their_operations_give(
    num_planes: int, kv_dtype: torch.dtype, num_threads: int
):
    layers = [make_layer(num_planes=num_planes) for _ in range(NUM_LAYERS)]
    check(Step(layers, kv_dtype=kv_dtype))


@pytest.mark.parametrize(
    "traits",
    [
        {"has_bias": True},
        {"is_sorted": True},
        {"has_head_norm": True},
        {"window": 20},
        {"num_heads": 2, "num_kv_heads": 2},
        {"num_heads": 8, "num_kv_heads": 1},
        {"head_dim": 128, "has_head_norm": True, "has_bias": True, "is_sorted": True},
    ],
    ids=str,
)
def test_biases_orders_norms_of_heads_windows_and_groups_are_heeded(traits: dict[str, Any]):
    sizes = {name: traits[name] for name in ("num_kv_heads", "head_dim") if name in traits}
    check(Step([make_layer(**traits), make_layer(**traits)], **sizes))


def test_layers_may_differ_in_windows_weights_and_orders():
    check(Step([make_layer(window=9), make_layer(num_planes=2), make_layer(is_sorted=True)]))


@pytest.mark.parametrize("has_offsets", [False, True])
def test_weights_of_one_scale_an_output_may_stand_beside_those_in_groups(has_offsets: bool):
    layer = make_layer()
    of_bytes = {
        name: random_int8_weight(
            weight.in_features, weight.out_features, has_offsets=has_offsets, size=0.01
        )
        for name in ("qkv", "down")
        for weight in [getattr(layer, name)]
    }
    check(Step([make_layer(), replace(layer, **of_bytes)]))


@pytest.mark.parametrize("num_layers", [0, 1, 2])
def test_the_first_layers_can_be_run_alone(num_layers: int):
    step = Step([make_layer() for _ in range(NUM_LAYERS)])
    check(step, num_layers=num_layers)
    residual, caches = step.run(llama_layers.LlamaLayers, num_layers=num_layers)
    untouched = [torch.equal(a, b) for a, b in zip(caches, step.caches, strict=True)]
    assert untouched == [False] * num_layers + [True] * (NUM_LAYERS - num_layers)
    assert torch.equal(residual, step.residual) == (num_layers == 0)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("num_planes", [1, 2])
def test_a_row_has_the_same_bits_alone_and_among_others(
    num_planes: int, kv_dtype: torch.dtype, num_threads: int
):
    layers = [make_layer(num_planes=num_planes, has_bias=True) for _ in range(NUM_LAYERS)]
    step = Step(layers, kv_dtype=kv_dtype)
    together, caches = step.run(llama_layers.LlamaLayers)
    for row in range(len(LENGTHS)):
        alone, own = step.run(llama_layers.LlamaLayers, slice(row, row + 1))
        assert torch.equal(alone[0], together[row])
        slot = step.slots[row]
        assert all(torch.equal(a[slot], b[slot]) for a, b in zip(own, caches, strict=True))


def test_other_sequences_nan_never_reaches_a_row():
    step = Step([make_layer() for _ in range(NUM_LAYERS)])
    wanted, _ = step.run(llama_layers.LlamaLayers)
    visible = slots_of(step.seen.tables, 4, LENGTHS[4])
    for cache in step.caches:
        kept = cache[visible].clone()
        cache.fill_(torch.nan)
        cache[visible] = kept
    step.residual[:4] = torch.nan
    got, _ = step.run(llama_layers.LlamaLayers)
    assert torch.equal(got[4], wanted[4])
    assert bool(got[:4].isnan().all())


def test_rows_of_one_sequence_see_what_those_before_them_have_just_stored():
    step = Step([make_layer() for _ in range(NUM_LAYERS)])
    step.seen = replace(
        step.seen,
        rows=torch.tensor([7, 7, 7, 1, 1, 7, 1, 1]),
        positions=torch.tensor([250, 251, 252, 39, 40, 253, 41, 42]),
    )
    slots = [slots_of(step.seen.tables, int(row), 300) for row in step.seen.rows]
    step.slots = torch.stack(
        [own[position] for own, position in zip(slots, step.seen.positions, strict=True)]
    )
    check(step)


def test_layers_keep_the_tensors_that_they_were_told_of():
    step = Step([make_layer()])
    told = (step.layers[0].mlp_norm, step.layers[0].down.packed, step.caches[0])
    kept = [weakref.ref(tensor) for tensor in told]
    layers = llama_layers.LlamaLayers(step.layers, step.caches)
    del told, step
    gc.collect()
    assert all(each() is not None for each in kept)
    del layers
    gc.collect()
    assert all(each() is None for each in kept)


@pytest.mark.parametrize("num_planes", [1, 2])
def test_many_rows_go_by_weights_that_are_rounded_first_each_as_it_is_alone(num_planes: int):
    layers = [make_layer(num_planes=num_planes, is_sorted=True) for _ in range(2)]
    step = Step(layers)
    check(step, are_many=True)
    together, caches = step.run(llama_layers.LlamaLayers, are_many=True)
    few, _ = step.run(llama_layers.LlamaLayers)
    assert not torch.equal(together, few)
    for row in range(len(LENGTHS)):
        alone, own = step.run(llama_layers.LlamaLayers, slice(row, row + 1), are_many=True)
        assert torch.equal(alone[0], together[row])
        assert torch.equal(own[-1][step.slots[row]], caches[-1][step.slots[row]])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="there is no g++ here")
def test_rows_by_tile_registers_come_out_as_those_without_each_as_it_is_alone(tmp_path: Path):
    build_emulated(tmp_path / "emulated.so", "llama_layers.cpp", "int4.cpp")
    run_comparison(COMPARE, str(tmp_path / "emulated.so"))


@pytest.mark.slow
def test_rows_by_the_processors_own_tile_registers_come_out_as_those_without():
    if not int4.may_use_tiles():
        pytest.skip("this CPU has no tile registers for bfloat16, or the system gives none")
    run_comparison(COMPARE, str(library_path()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_norm": torch.ones(HIDDEN - 1)}, "stands over rows|would fit"),
        ({"mlp_norm": torch.ones(HIDDEN + 1)}, "a norm of"),
        ({"head_norm": HeadNorm(torch.ones(32), torch.ones(64), 1e-6)}, "a norm of"),
        ({"down": random_weight(INNER, 64, HIDDEN - 1)}, "product of down"),
        ({"gate_up": random_weight(HIDDEN, 32, 2 * INNER - 1)}, "would fit"),
        ({"num_heads": 5}, "would fit"),
        ({"attention_norm": torch.ones(HIDDEN, dtype=torch.bfloat16)}, "torch.float32"),
    ],
)
def test_layers_that_do_not_fit_together_are_refused(changes: dict[str, Any], said: str):
    step = Step([replace(make_layer(), **changes)])
    with pytest.raises(ValueError, match=said):
        llama_layers.LlamaLayers(step.layers, step.caches)


def test_layers_that_differ_in_what_is_told_of_all_at_once_are_refused():
    layers = [make_layer(), replace(make_layer(), eps=1e-6)]
    with pytest.raises(ValueError, match="differ in heads, scale or eps"):
        llama_layers.LlamaLayers(layers, Step(layers).caches)
    step = Step([make_layer(), make_layer()])
    with pytest.raises(ValueError, match="keys and values differ"):
        llama_layers.LlamaLayers(step.layers, [step.caches[0], step.caches[1].half()])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"residual": torch.randn(8, HIDDEN + 64)}, "another width"),
        ({"residual": torch.randn(8, HIDDEN).bfloat16()}, "residual has another type"),
        ({"rotation": torch.rand(300, 3, 64)}, "rotation"),
        ({"rotation": torch.rand(100, 2, 64)}, "a position is too large"),
        ({"slots": torch.arange(7)}, "each row has"),
        ({"slots": torch.full((8,), 10**6)}, "a slot is not in the cache"),
        ({"slots": torch.full((8,), -1)}, "a slot is not in the cache"),
        ({"rows": torch.full((8,), 8)}, "no table"),
        ({"positions": torch.full((8,), -1)}, "a position is too large"),
        ({"tables": torch.zeros(8, 2, dtype=torch.int64)}, "beyond its table"),
        ({"tables": torch.full((8, 20), 2**59)}, "outside the cache"),
        ({"tables": torch.full((8, 20), -1)}, "outside the cache"),
    ],
)
def test_rows_that_would_be_read_or_written_elsewhere_are_refused(
    changes: dict[str, Tensor], said: str
):
    step = Step([make_layer()])
    of_seen = {name: changes[name] for name in ("rows", "positions", "tables") if name in changes}
    step.seen = replace(step.seen, **of_seen)
    for name in changes.keys() - of_seen.keys():
        setattr(step, name, changes[name])
    with pytest.raises(RuntimeError, match=said):
        step.run(llama_layers.LlamaLayers)


def test_more_query_heads_than_attention_shares_are_refused():
    layer = make_layer(num_heads=65, num_kv_heads=1)
    step = Step([layer], num_kv_heads=1)
    with pytest.raises(RuntimeError, match="at most 64"):
        step.run(llama_layers.LlamaLayers)


def test_no_rows_are_no_work():
    step = Step([make_layer()])
    residual, caches = step.run(llama_layers.LlamaLayers, slice(0, 0))
    assert residual.shape == (0, HIDDEN)
    assert torch.equal(caches[0], step.caches[0])
