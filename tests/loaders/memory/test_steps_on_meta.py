"""What a step's layers really hold, counted on the meta device, beside what a plan says of them."""

from __future__ import annotations

import pytest
import torch

from engine.attention.interface import ModelInput
from engine.layers.gpu_llama import GpuLlamaDecoder
from loaders.checkpoint.shape import read_shape
from loaders.memory import steps
from tests.live_bytes import LiveBytes
from tests.models import tiny_llama

META = torch.device("meta")
SIZES = {
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 64,
}


class BareKernels:
    """Makes what each operation returns, and no temporary besides, as a fused kernel does."""

    name = "bare"

    def add_norm(self, residual, delta, weight, eps, order):
        return torch.empty_like(residual)

    def silu_mul(self, gate_up):
        return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


class BareAttention:
    """Makes the rotated queries and what was attended."""

    def attend_fused(self, layer_index, qkv, rotation, *, num_heads, **_more):
        head_dim = rotation.shape[-1]
        query = qkv.new_empty(qkv.shape[0], num_heads, head_dim)
        return query.new_empty(query.shape[0], num_heads * head_dim)


@pytest.mark.parametrize(("num_tokens", "num_sampled"), [(1, 1), (256, 1), (64, 64)])
@pytest.mark.parametrize("intermediate_size", [1408, 64], ids=["wide", "narrow"])
def test_layers_hold_what_the_formula_says(num_tokens, num_sampled, intermediate_size):
    model = tiny_llama(**SIZES, intermediate_size=intermediate_size).half().to(META)
    shape = read_shape(model.config.to_dict())
    decoder = GpuLlamaDecoder(model, max_model_len=64, kernels=BareKernels())
    with LiveBytes() as live, torch.inference_mode():
        numbers = torch.zeros(4, num_tokens, dtype=torch.int64, device=META)
        sampled = numbers[0, :num_sampled]
        decoder.logits(ModelInput(numbers[0], numbers[1], sampled, BareAttention()))
    said = steps.layer_bytes(shape, num_tokens, num_sampled)
    assert live.peak == pytest.approx(said, rel=0.01)
    assert live.peak <= said
