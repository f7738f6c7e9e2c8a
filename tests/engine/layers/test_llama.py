from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from engine.layers import fuse_layers
from engine.layers.llama import HeadNorm, LlamaDecoder, LlamaLayer, RMSNorm, is_known
from engine.sampling_params import SamplingParams
from tests.engine.tiny_models import (
    FUSED,
    UNFUSED,
    generate,
    make_engine,
    make_model,
    make_prompts,
    run_engine,
)


def test_known_families_are_fused_and_others_left_alone():
    for config in FUSED.values():
        assert is_known(make_model(config))
    for config in UNFUSED.values():
        model = make_model(config)
        before = list(model.modules())
        assert fuse_layers(model, max_model_len=64, is_batch_invariant=False) is None
        assert list(model.modules()) == before


def test_a_subclass_of_a_known_family_is_not_taken_for_it():
    class Changed(LlamaForCausalLM):
        pass

    assert not is_known(Changed(FUSED["llama"]))


def test_fused_layers_stand_in_the_model_in_place_of_the_old_ones():
    model = make_model(FUSED["llama"])
    decoder = fuse_layers(model, max_model_len=64, is_batch_invariant=False)
    assert isinstance(decoder, LlamaDecoder)
    layers = model.model.layers
    assert all(isinstance(layer, LlamaLayer) for layer in layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_table_and_norms_are_computed_in_float32(dtype: torch.dtype):
    """Their values are what counts: the same model, widened, answers the same."""
    model = make_model(FUSED["llama"])
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    widened = make_model(FUSED["llama"])
    widened.load_state_dict(model.state_dict())
    (prompt,) = make_prompts(20)
    params = SamplingParams(max_tokens=20, temperature=0)
    assert run_engine(make_engine(model), [(prompt, params)]) == [generate(widened, prompt, 20)]


def test_the_embedding_table_is_not_copied():
    model = make_model(FUSED["qwen3, tied"]).half()
    table = model.get_input_embeddings().weight
    decoder = fuse_layers(model, max_model_len=64, is_batch_invariant=False)
    assert decoder is not None
    assert decoder._embedding.data_ptr() == table.data_ptr()
    assert decoder._embedding.dtype == torch.float16


def test_the_norm_is_torchs_rms_norm():
    norm = nn.RMSNorm(48)
    norm.weight.data = torch.randn(48)
    norm.variance_epsilon = 1e-3
    x = torch.randn(7, 48) * 0.05
    wanted = functional.rms_norm(x, (48,), norm.weight, 1e-3)
    torch.testing.assert_close(RMSNorm(norm, torch.float32)(x), wanted)


def test_the_norm_of_a_row_does_not_depend_on_the_rows_beside_it():
    norm = nn.RMSNorm(576)
    norm.variance_epsilon = 1e-5
    rms_norm = RMSNorm(norm, torch.float32)
    x = torch.randn(33, 576)
    together = rms_norm(x)
    for row in range(33):
        assert torch.equal(together[row : row + 1], rms_norm(x[row : row + 1]))


def test_query_and_key_heads_each_have_their_own_norm():
    model = make_model(FUSED["qwen3, tied"])
    attention = model.model.layers[0].self_attn
    heads = torch.randn(5, 6, 32)
    wanted = torch.cat([attention.q_norm(heads[:, :4]), attention.k_norm(heads[:, 4:])], dim=1)
    HeadNorm(attention, model.config, torch.float32)(heads)
    torch.testing.assert_close(heads, wanted)
