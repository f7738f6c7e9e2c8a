from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    StableLmConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from engine.attention.interface import ModelInput
from engine.errors import UnsupportedArchitectureError
from engine.execution.decoder import TransformersDecoder, make_decoder
from engine.layers.gpu_llama import GpuLlamaDecoder
from engine.layers.llama import LlamaDecoder
from tests.engine.graph_guard import NothingForTheHost
from tests.engine.tiny_models import CAPPED, FUSED, UNFUSED, make_model, make_prompts
from tests.engine.whole_sequence import PlainKernels, WholeSequence

NO_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL: dict[str, Any] = NO_IDS | {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def refuse(config: PretrainedConfig, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        make_decoder(model, max_model_len=64)


LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 63,
}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("rope", "made_for"), [(DYNAMIC, 63), (LONGROPE, 2048)], ids=["dynamic", "longrope"]
)
def test_rope_that_depends_on_the_batch_beyond_some_length_is_refused_there(
    rope: dict[str, Any], made_for: int
):
    config = LlamaConfig(**SMALL, rope_parameters=rope, max_position_embeddings=made_for)
    refuse(config, "beyond 63 tokens depend on the longest sequence.*lower it to 63")
    make_decoder(AutoModelForCausalLM.from_config(config), max_model_len=63)


def test_capped_attention_scores_are_refused():
    refuse(CAPPED, "caps attention scores at 50")


def test_a_model_with_attention_of_its_own_is_refused():
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2, **NO_IDS)
    refuse(config, "attention of its own")


def test_layers_that_do_not_hand_on_the_cache_are_refused_with_that_reason():
    config = StableLmConfig(**SMALL, num_key_value_heads=2)
    refuse(config, "StableLmAttention is not told where keys and values are kept")


def test_a_model_without_attention_is_refused():
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, **NO_IDS)
    refuse(config, "layers of type")


def test_values_narrower_than_keys_are_refused():
    config = DeepseekV2Config(
        **SMALL,
        num_key_value_heads=2,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    refuse(config, "keys of shape")


def test_more_positions_than_were_learned_are_refused():
    with pytest.raises(UnsupportedArchitectureError, match="256 learned positions"):
        make_decoder(make_model(UNFUSED["gpt2"]), max_model_len=257)


def test_an_encoder_decoder_model_is_refused():
    config = T5Config(
        vocab_size=64, d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2, **NO_IDS
    )
    with pytest.raises(UnsupportedArchitectureError, match="encoder-decoder"):
        make_decoder(T5ForConditionalGeneration(config), max_model_len=64)


def test_half_precision_activations_on_cpu_are_refused():
    with pytest.raises(UnsupportedArchitectureError, match="load it with dtype float32"):
        make_decoder(make_model(UNFUSED["phi"]).to(torch.bfloat16), max_model_len=64)


def test_a_model_without_memory_behind_it_is_refused():
    with pytest.raises(UnsupportedArchitectureError, match="lies on meta"):
        make_decoder(make_model(FUSED["llama"]).to("meta"), max_model_len=64)


def test_a_known_family_with_a_foreign_linear_layer_is_refused():
    model = make_model(FUSED["llama"])
    model.model.layers[0].mlp.up_proj = nn.Identity()
    with pytest.raises(UnsupportedArchitectureError, match="Identity stands where a linear layer"):
        make_decoder(model, max_model_len=64)


def test_a_gpus_path_has_layers_of_its_own_for_known_families():
    on_gpu = make_decoder(make_model(FUSED["llama"]), max_model_len=64, kernels=PlainKernels())
    on_cpu = make_decoder(make_model(FUSED["llama"]), max_model_len=64)
    assert isinstance(on_gpu, GpuLlamaDecoder)
    assert isinstance(on_cpu, LlamaDecoder)
    assert on_gpu.is_recordable
    assert on_cpu.is_recordable


def step(num_tokens: int, rows: torch.Tensor | None) -> ModelInput:
    (prompt,) = make_prompts(num_tokens)
    return ModelInput(torch.tensor(prompt), torch.arange(num_tokens), rows, WholeSequence())


class NoAttention:
    """An `AttentionStep` that gives queries back."""

    def attend(self, _layer_index: int, query: torch.Tensor, *_: object, **__: object) -> Any:
        return query


OTHERS = UNFUSED | {"mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4)}


@pytest.mark.parametrize("family", OTHERS)
def test_transformers_layers_wait_for_nothing_either(family: str):
    """So a graph holds them, too; of their mask, which looks at positions, nothing runs."""
    decoder = make_decoder(make_model(OTHERS[family]), max_model_len=64, kernels=PlainKernels())
    assert isinstance(decoder, TransformersDecoder)
    assert decoder.is_recordable
    if family == "mixtral":  # makes ranges, whose ends follow from shapes
        return
    given = replace(step(9, torch.tensor([8])), attention=NoAttention())
    with torch.inference_mode(), NothingForTheHost():
        decoder.logits(given)


def test_all_rows_come_out_where_none_are_named():
    decoder = make_decoder(make_model(UNFUSED["phi"]), max_model_len=64)
    with torch.inference_mode():
        everything = decoder.logits(step(9, None))
        some = decoder.logits(step(9, torch.tensor([8, 2])))
    assert everything.shape[0] == 9
    torch.testing.assert_close(everything[torch.tensor([8, 2])], some)


class WaitingNorm(nn.Module):
    """A layer that asks the device how large its input is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / float(x.abs().amax())


def test_layers_that_wait_for_the_device_are_not_recorded_and_that_is_said():
    model: Any = make_model(UNFUSED["phi"])
    model.model.layers[1].input_layernorm = WaitingNorm()
    with capture_logs() as logs:
        decoder = make_decoder(model, max_model_len=64)
    assert not decoder.is_recordable
    (said,) = [entry for entry in logs if entry["event"] == "steps_not_recordable"]
    assert said["model"] == "PhiForCausalLM"
    assert said["operations"] == ["_local_scalar_dense"]
