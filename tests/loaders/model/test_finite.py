"""Weights that are no numbers are refused by the tensor's name, in packed layers and outside."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.errors import TensorError
from loaders.load import load
from loaders.model.finite import check_finite
from tests.models import tiny_llama, tiny_qwen2, tiny_tokenizer, write_gptq_checkpoint

SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def write(folder, name, value, dtype=torch.float16):
    model = tiny_qwen2(**SMALL) if name.endswith("bias") else tiny_llama(**SMALL)
    write_gptq_checkpoint(folder, model, tokenizer=tiny_tokenizer(), group_size=32, dtype=dtype)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[17] = value
    save_file(tensors, path, metadata={"format": "pt"})


NOT_NUMBERS = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.scales",
    ],
)
def test_a_weight_that_is_no_number_is_named(tmp_path, name, value):
    write(tmp_path, name, value)
    with pytest.raises(TensorError, match=rf"{name} holds NaN or infinit"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_head_is_checked_in_each_precision(tmp_path, value, dtype):
    write(tmp_path, "lm_head.weight", value, dtype)
    with pytest.raises(TensorError, match=r"lm_head\.weight holds NaN or infinity"):
        load(str(tmp_path), device="cpu")


def test_the_largest_halves_and_what_holds_nothing_are_numbers():
    check_finite("a", torch.full((3, 4), 65504.0, dtype=torch.float16))
    check_finite("b", torch.empty(0))
    check_finite("c", torch.tensor([1, 2]))
