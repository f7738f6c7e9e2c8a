"""A checkpoint of random numbers is one that the loaders take, and a sane one."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.gpu.checkpoint import write_checkpoint
from benchmarks.gpu.limit import ModelShape
from loaders.load import load
from tests.dequantize import dequantized_model

SHAPE = ModelShape(
    num_layers=2,
    hidden_size=256,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=512,
    vocab_size=1000,
    bits=4,
    group_size=128,
)


@pytest.mark.parametrize("has_act_order", [False, True])
def test_it_loads_and_its_activations_stay_near_one(tmp_path, has_act_order: bool):
    num_bytes = write_checkpoint(
        tmp_path / "model", SHAPE, max_context=64, has_act_order=has_act_order
    )
    loaded = load(str(tmp_path / "model"), device="cpu", backend="reference", cache_dir=tmp_path)
    assert sum(tensor.num_bytes for tensor in loaded.tensors.values()) == num_bytes
    ids = torch.arange(0, 1000, 25)[None]
    with torch.inference_mode():
        logits = loaded.model(ids).logits
        expected = dequantized_model(tmp_path / "model")(ids).logits
    assert 0.3 < float(logits.std()) < 3
    assert torch.allclose(logits, expected, atol=1e-3)


def test_layers_that_read_the_same_have_the_same_act_order(tmp_path):
    write_checkpoint(tmp_path, SHAPE, max_context=64, has_act_order=True)
    tensors = load_file(tmp_path / "model.safetensors")

    def order(name: str) -> list[int]:
        return tensors[f"model.layers.1.{name}.g_idx"].tolist()

    assert order("self_attn.q_proj") == order("self_attn.k_proj") == order("self_attn.v_proj")
    assert order("mlp.gate_proj") == order("mlp.up_proj")
    assert order("self_attn.q_proj") != sorted(order("self_attn.q_proj"))
    assert order("self_attn.q_proj") != order("self_attn.o_proj") != order("mlp.gate_proj")


def test_its_size_is_what_the_limit_counts_beside_tables_and_zeros(tmp_path):
    num_bytes = write_checkpoint(tmp_path, SHAPE, max_context=64)
    table = SHAPE.vocab_size * SHAPE.hidden_size * 2
    assert SHAPE.bytes_read + table < num_bytes < 1.1 * (SHAPE.bytes_read + table)


def test_other_widths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="bits is 8"):
        write_checkpoint(tmp_path, replace(SHAPE, bits=8), max_context=64)
