"""The builders and the independent dequantiser agree, so that other tests can lean on both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from tests.dequantize import dequantized_model, dequantized_state
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    write_awq_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

if TYPE_CHECKING:
    from pathlib import Path

# One small layer; 160 inputs leave a partial last group of 64s and 128s.
SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 256,
    "intermediate_size": 160,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
DOWN = "model.layers.0.mlp.down_proj"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def distance(state: dict[str, Any], weight: torch.Tensor, name: str) -> float:
    """How far a dequantised weight is from the one it was rounded from, relative."""
    found = torch.from_numpy(state[f"{name}.weight"])
    return float((found - weight.float()).norm() / weight.float().norm())


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("group_size", [-1, 16, 32, 64, 128])
@pytest.mark.parametrize(("bits", "tolerance"), [(2, 0.7), (3, 0.35), (4, 0.18), (8, 0.012)])
def test_symmetric_rounding_stays_near_the_weights(
    tmp_path, bits, tolerance, group_size, desc_act, checkpoint_format
):
    model = tiny_llama(**SMALL)
    write_gptq_checkpoint(
        tmp_path,
        model,
        bits=bits,
        group_size=group_size,
        desc_act=desc_act,
        checkpoint_format=checkpoint_format,
    )
    state = dequantized_state(tmp_path)
    assert distance(state, model.get_submodule(DOWN).weight, DOWN) < tolerance


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
def test_asymmetric_checkpoints_carry_the_zero_points_that_wrap(tmp_path, checkpoint_format):
    model = tiny_llama(**SMALL)
    write_gptq_checkpoint(tmp_path, model, sym=False, checkpoint_format=checkpoint_format)
    weight = torch.from_numpy(dequantized_state(tmp_path)[f"{DOWN}.weight"])
    assert (weight[0::16] >= 0).all()  # zero point 0: no code lies below it
    assert (weight[1::16] <= 0).all()  # zero point 15: no code lies above it
    assert (
        distance(
            {f"{DOWN}.weight": weight[2:16].numpy()}, model.get_submodule(DOWN).weight[2:16], DOWN
        )
        < 0.15
    )


def test_awq_rounding_stays_near_the_weights(tmp_path):
    model = tiny_llama(**SMALL)
    write_awq_checkpoint(tmp_path, model, group_size=64, modules_to_not_convert=["q_proj"])
    state = dequantized_state(tmp_path)
    weight = model.get_submodule(DOWN).weight[2:16]
    assert distance({f"{DOWN}.weight": state[f"{DOWN}.weight"][2:16]}, weight, DOWN) < 0.15
    q_proj = "model.layers.0.self_attn.q_proj"
    assert distance(state, model.get_submodule(q_proj).weight, q_proj) == 0


def test_siblings_share_their_act_order_unless_told_otherwise(tmp_path):
    model = tiny_llama(**SMALL)
    q, k = (f"model.layers.0.self_attn.{name}_proj.g_idx" for name in "qk")
    together = tensors_of(write_gptq_checkpoint(tmp_path / "a", model, desc_act=True))
    assert torch.equal(together[q], together[k])
    apart = tensors_of(
        write_gptq_checkpoint(tmp_path / "b", model, desc_act=True, siblings_share_order=False)
    )
    assert not torch.equal(apart[q], apart[k])


def test_a_partial_last_group_has_a_scale_of_its_own(tmp_path):
    tensors = tensors_of(write_gptq_checkpoint(tmp_path, tiny_llama(**SMALL), group_size=64))
    assert tensors[f"{DOWN}.scales"].shape == (3, 256)
    assert tensors[f"{DOWN}.g_idx"].bincount().tolist() == [64, 64, 32]


def test_dynamic_rules_skip_and_override_modules(tmp_path):
    rules = {
        r"-:.*\.k_proj": {},
        r"+:.*\.down_proj": {"bits": 8, "group_size": 32},
        r".*up_proj": {"bits": 2},
    }
    tensors = tensors_of(write_gptq_checkpoint(tmp_path, tiny_llama(**SMALL), dynamic=rules))
    assert "model.layers.0.self_attn.k_proj.weight" in tensors
    assert tensors[f"{DOWN}.qweight"].shape == (160 * 8 // 32, 256)
    assert tensors[f"{DOWN}.scales"].shape == (5, 256)
    assert tensors["model.layers.0.mlp.up_proj.qweight"].shape == (256 * 2 // 32, 160)
    assert tensors["model.layers.0.mlp.gate_proj.qweight"].shape == (256 * 4 // 32, 160)
    assert json.loads((tmp_path / "quantize_config.json").read_text())["dynamic"] == rules


def test_modules_in_block_to_quantize_leaves_the_others_alone(tmp_path):
    folder = write_gptq_checkpoint(
        tmp_path,
        tiny_llama(**SMALL),
        modules_in_block_to_quantize=[["self_attn.q_proj"], ["mlp.down_proj"]],
    )
    packed = {name for name in tensors_of(folder) if name.endswith("qweight")}
    assert packed == {"model.layers.0.self_attn.q_proj.qweight", f"{DOWN}.qweight"}


def test_settings_lie_only_in_the_files_asked_for(tmp_path):
    model = tiny_llama(**SMALL)
    both = write_gptq_checkpoint(tmp_path / "both", model)
    none = write_gptq_checkpoint(tmp_path / "none", model, settings_in=[])
    assert (both / "quantize_config.json").exists()
    assert json.loads((both / "config.json").read_text())["quantization_config"]["bits"] == 4
    assert not (none / "quantize_config.json").exists()
    assert "quantization_config" not in json.loads((none / "config.json").read_text())


@pytest.mark.parametrize(
    "parameters",
    [
        {"lm_head": True},
        {"stray_bias": True},
        {"store_g_idx": False},
        {"max_shard_bytes": 200_000},
        {"bits": 3, "sym": False, "desc_act": True, "group_size": -1},
    ],
    ids=lambda parameters: ",".join(parameters),
)
@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_every_checkpoint_becomes_a_stock_model_that_answers(tmp_path, make, parameters):
    model = make(**SMALL)
    write_gptq_checkpoint(tmp_path, model, **parameters)
    read_back = dequantized_model(tmp_path)
    token_ids = torch.arange(12)[None]
    with torch.inference_mode():
        logits = read_back(token_ids).logits
        rounded_from = model.float()(token_ids).logits
    assert logits.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(logits, rounded_from, dim=-1).mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_plain_checkpoints_come_back_exactly(tmp_path, dtype, tied):
    model = tiny_llama(dtype=dtype, tie_word_embeddings=tied, **SMALL)
    write_plain_checkpoint(tmp_path, model, dtype=dtype, max_shard_bytes=100_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read_back = dequantized_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(read_back.state_dict()[name], tensor.float()), name


def test_the_tiny_repositories_hold_the_cards_branches(tiny_repo):
    root = tiny_repo.cache_dir / "models--tetrad--Tiny-Llama-GPTQ"
    assert {ref.name for ref in (root / "refs").iterdir()} == {
        "main",
        "gptq-4bit-32g-actorder_True",
        "gptq-4bit-64g-actorder_True",
        "gptq-4bit-128g-actorder_True",
        "gptq-8bit--1g-actorder_True",
        "gptq-8bit-128g-actorder_True",
    }
    assert len(tiny_repo.specs()) == 7


def test_the_tiny_tokenizer_encodes_any_text(tiny_tokenizer):
    text = "def f(x):\n\treturn '漢字 😀 é'  # ok"
    token_ids = tiny_tokenizer(text).input_ids
    assert token_ids[0] == tiny_tokenizer.bos_token_id
    assert tiny_tokenizer.bos_token_id not in token_ids[1:]
    assert tiny_tokenizer.decode(token_ids[1:]) == text
    assert len(tiny_tokenizer) == 512
