"""Configurations that are refused before anything is built."""

import json

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loaders.checkpoint.config import make_model_config
from loaders.checkpoint.config_limits import check_config
from loaders.errors import CheckpointError, UnsupportedModelError

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}


def check(**changes):
    check_config(make_model_config({**LLAMA, **changes}))


@pytest.mark.parametrize(
    ("model_type", "count"),
    [
        ("mixtral", 8),
        ("qwen2_moe", 60),
        ("qwen3_moe", 128),
        ("deepseek_v2", 64),
        ("deepseek_v3", 256),
        ("gpt_oss", 128),
        ("granitemoe", 8),
        ("olmoe", 64),
        ("phimoe", 16),
        ("llama4_text", 16),
        ("ernie4_5_moe", 64),
    ],
)
def test_mixtures_of_experts_are_refused_by_type_and_number(model_type, count):
    with pytest.raises(UnsupportedModelError, match=f"{model_type} is a mixture of {count} expert"):
        check_config(make_model_config({"model_type": model_type}))


def test_the_number_of_experts_is_the_configurations_own():
    with pytest.raises(UnsupportedModelError, match="mixture of 16 experts"):
        check(model_type="mixtral", num_local_experts=16)


@pytest.mark.parametrize(
    "config", [{"model_type": "doge"}, {"model_type": "hunyuan_v1_moe", "num_experts": 1}]
)
def test_models_that_could_have_experts_and_have_none_are_dense(config):
    check_config(make_model_config(config))


def test_no_plain_model_of_transformers_is_taken_for_absurd():
    """Every type's own defaults, but those that Transformers itself refuses."""
    refused = {}
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            check_config(make_model_config({"model_type": model_type}))
        except UnsupportedModelError:
            continue
        except CheckpointError as error:
            refused[model_type] = str(error)
    by_us = {name for name, reason in refused.items() if "is not a valid" not in reason}
    assert by_us <= {"xlnet"}, refused  # its positions have no end, which it writes as -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size 0"),
        ({"hidden_size": 10**12}, "hidden_size 1000000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers -1"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size 0"),
        ({"intermediate_size": 10**12}, "intermediate_size"),
        ({"max_position_embeddings": 10**18}, "max_position_embeddings"),
        ({"num_key_value_heads": 3}, "4 attention heads for 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps -1.0"),
        ({"rope_theta": 0}, "rope_theta 0"),
        ({"rope_theta": -10000.0}, "rope_theta -10000.0"),
        ({"rope_theta": float("nan")}, "rope_theta nan"),
        ({"rope_theta": float("inf")}, "rope_theta inf"),
        ({"rope_theta": "10000"}, "rope_theta '10000'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor 0"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("nan")}}, "factor nan"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}},
            "short_factor of 1 numbers.* has 8",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1] * 8,
                    "long_factor": [float("nan")] * 8,
                }
            },
            "long_factor",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_absurd_values_are_refused_by_name(changes, message):
    with pytest.raises(CheckpointError, match=message):
        check(**changes)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "stretched", [{"factor": 4.0}, {"type": None, "factor": 4.0}, {"full_attention": {"factor": 2}}]
)
def test_positions_stretched_without_a_word_of_how_are_refused(key, stretched):
    for config in ({key: stretched}, {"text_config": {key: stretched}}):
        with pytest.raises(CheckpointError, match=f"{key} with factor .* without a type"):
            check(**config)


@pytest.mark.parametrize(
    "settings",
    [
        {"factor": 1.0},
        {"rope_theta": 1e6},
        {"type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
    ],
)
def test_settings_that_name_their_type_or_stretch_nothing_are_read(settings):
    check(rope_scaling=settings)
