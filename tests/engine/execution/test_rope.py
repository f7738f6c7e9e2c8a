from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig

from engine.execution.rope import longest_with_fixed_rope, rope_types

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
FACTORS = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


def test_angles_of_most_rope_types_never_look_at_the_batch():
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    assert longest_with_fixed_rope(LlamaConfig(rope_parameters=yarn)) is None
    assert longest_with_fixed_rope(GPT2Config()) is None


def test_dynamic_angles_are_fixed_up_to_the_models_own_length():
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config = LlamaConfig(rope_parameters=dynamic, max_position_embeddings=2048)
    assert longest_with_fixed_rope(config) == 2048


def test_longrope_is_fixed_up_to_the_length_of_the_first_training():
    config = LlamaConfig(rope_parameters=LONGROPE | FACTORS, max_position_embeddings=131_072)
    assert longest_with_fixed_rope(config) == 4096


def test_layers_of_several_kinds_are_fixed_as_far_as_the_first_to_change():
    rope = {
        "full_attention": LONGROPE | {k: v * 2 for k, v in FACTORS.items()},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = Gemma3TextConfig(rope_parameters=rope, head_dim=256)
    assert rope_types(config) == {"longrope", "default"}
    assert longest_with_fixed_rope(config) == 4096
