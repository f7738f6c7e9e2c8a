"""The first layers' tokens beside the reference pass, right and wrong on purpose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.config import EngineConfig, KVDtype
from engine.core import Engine
from engine.step_test.first_tokens import check_first_tokens
from engine.step_test.reference_pass import NUM_TOKENS, run_reference_pass
from engine.step_test.step_check import Part
from tests.engine.tiny_models import FUSED, UNFUSED, make_model

UNIT = 2**-24


def tiny_model(kind):
    return make_model({**FUSED, **UNFUSED}[kind])


def config(**changes) -> EngineConfig:
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 96}
    return EngineConfig(**{**sizes, "num_blocks": 48, **changes})


def no_packed_layers(module):
    raise AssertionError(f"{module} is not packed")


def checked(kind, *, spoil=lambda engine: None, **changes):
    """Run the reference pass and then the engine, spoilt or not."""
    model = tiny_model(kind)
    reference = run_reference_pass(model, no_packed_layers, max_model_len=96)
    engine = Engine(model, config(**changes))
    spoil(engine)
    with engine.eagerly(), engine.first_layers(reference.num_layers):
        return check_first_tokens(engine, reference, UNIT)


@pytest.mark.parametrize("kind", ["llama", "qwen3, tied", "mistral with a window", "phi"])
def test_a_right_step_says_what_the_reference_says(kind):
    found = checked(kind)
    assert found.name == "first tokens of 2 layers"
    assert (found.passed, found.part) == (True, Part.WHOLE_STEP), found.detail
    assert found.worst < 0.1


def turn_the_other_way(engine):
    with torch.inference_mode():
        engine._runner._decoder._rotation[:, 1].neg_()


def test_rotation_the_other_way_is_found_and_measured():
    found = checked("llama", spoil=turn_the_other_way)
    assert found.passed is False
    assert found.worst > 3
    assert "prompt" in found.detail


def swap_gate_and_up(engine):
    mlp = engine._runner._decoder._layers[1]
    weight = mlp._gate_up._weights[0]
    gate, up = weight._weight.chunk(2)
    weight._weight = torch.cat((up, gate))


def test_a_wrong_second_layer_is_found():
    assert checked("llama", spoil=swap_gate_and_up).passed is False


def test_layers_behind_the_first_two_are_not_looked_at_and_are_there_again_afterwards():
    model = tiny_model("llama")
    reference = run_reference_pass(model, no_packed_layers, max_model_len=96)
    engine = Engine(model, config())
    with engine.first_layers(2):
        assert len(engine._runner._decoder._layers) == 2
        assert check_first_tokens(engine, reference, UNIT).passed
    assert len(engine._runner._decoder._layers) == 3
    assert check_first_tokens(engine, reference, UNIT).passed is False  # with all of them


def test_a_narrow_cache_is_allowed_its_own_rounding():
    kept = {"kv_dtype": KVDtype.FP8}
    assert checked("llama", **kept).passed is False
    model = tiny_model("llama")
    reference = run_reference_pass(model, no_packed_layers, max_model_len=96)
    engine = Engine(model, config(**kept))
    with engine.first_layers(2):
        assert check_first_tokens(engine, reference, 2**-6).passed


def test_another_token_at_a_clear_choice_fails_even_where_logprobs_are_near():
    model = tiny_model("llama")
    reference = run_reference_pass(model, no_packed_layers, max_model_len=96)
    least = reference.logprobs[:, -NUM_TOKENS:].argmin(dim=-1)
    turned = reference.logprobs.clone()
    turned[:, -NUM_TOKENS:].scatter_(-1, least.unsqueeze(-1), 0.0)
    other = replace(reference, token_ids=least, logprobs=turned)
    engine = Engine(model, config())
    with engine.first_layers(2):
        found = check_first_tokens(engine, other, UNIT)
    assert found.passed is False
    assert "by the reference" in found.detail


def test_what_was_cached_of_the_first_layers_is_found_by_no_other_request():
    model = tiny_model("llama")
    reference = run_reference_pass(model, no_packed_layers, max_model_len=96)
    engine = Engine(model, config())
    with engine.first_layers(2):
        check_first_tokens(engine, reference, UNIT)
    before = engine.statistics()
    with engine.first_layers(2):
        check_first_tokens(engine, reference, UNIT)
    after = engine.statistics()
    assert after.prefix_cache_hits == before.prefix_cache_hits == 0


def test_the_reference_pass_leaves_the_model_as_it_was():
    model = tiny_model("llama").half()
    dtypes = {name: tensor.dtype for name, tensor in model.named_parameters()}
    run_reference_pass(model, no_packed_layers, max_model_len=96)
    assert {name: tensor.dtype for name, tensor in model.named_parameters()} == dtypes
    assert len(model.model.layers) == 3
    assert "forward" not in vars(model.lm_head)
