"""Settings of the rotary embedding that its type does not use."""

from __future__ import annotations

import pytest
from transformers import Gemma3TextConfig, HunYuanDenseV1Config, LlamaConfig

from loaders.model.plausibility.rope import check_rope

ORIGINAL = "original_max_position_embeddings"
USED = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, ORIGINAL: 128, "beta_fast": 32, "mscale": 1.0, "finetuned": True},
    "longrope": {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32, ORIGINAL: 128},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 128},
}


def config_with(rope_type, **settings):
    parameters = {"rope_type": rope_type, "rope_theta": 10_000.0, **settings}
    return LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=parameters)


@pytest.mark.parametrize("rope_type", USED)
def test_settings_that_a_type_uses_are_not_suspect(rope_type):
    assert check_rope(config_with(rope_type, **USED[rope_type])) == []


@pytest.mark.parametrize(
    ("rope_type", "name", "value"),
    [
        ("default", "factor", 4.0),
        ("default", "short_factor", [1.0, 2.0]),
        ("linear", "low_freq_factor", 1.5),
        ("dynamic", "alpha", 1000.0),
        ("yarn", "extrapolation_factor", 2.0),
    ],
)
def test_settings_that_a_type_does_not_use_are_named(rope_type, name, value):
    (suspicion,) = check_rope(config_with(rope_type, **{**USED[rope_type], name: value}))
    assert suspicion.check == "unused_rope_settings"
    assert name in suspicion.reason
    assert repr(rope_type) in suspicion.reason


def test_what_one_models_class_reads_is_not_suspect_there():
    parameters = {
        "type": "dynamic",
        "factor": 1.0,
        "alpha": 1000.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.5,
        "mscale_all_dim": 0.5,
    }
    assert check_rope(HunYuanDenseV1Config(rope_parameters=parameters)) == []
    (suspicion,) = check_rope(HunYuanDenseV1Config(rope_parameters={**parameters, "gamma": 2.0}))
    assert "gamma=2.0" in suspicion.reason


@pytest.mark.parametrize("settings", [{"factor": 1.0}, {"factor": None}, {ORIGINAL: 4096}])
def test_settings_that_would_change_nothing_are_not_suspect(settings):
    assert check_rope(config_with("default", **settings)) == []


def test_settings_of_each_type_of_layer_are_looked_at():
    config = Gemma3TextConfig(num_hidden_layers=2)
    assert check_rope(config) == []
    kind = next(name for name, one in config.rope_parameters.items() if isinstance(one, dict))
    config.rope_parameters[kind] = {"rope_type": "default", "rope_theta": 1e4, "factor": 8.0}
    (suspicion,) = check_rope(config)
    assert "factor=8.0" in suspicion.reason


def test_a_model_without_a_rotary_embedding_is_not_suspect():
    config = LlamaConfig()
    config.rope_parameters = None
    assert check_rope(config) == []
