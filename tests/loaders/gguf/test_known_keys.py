"""Settings of a GGUF file: those of published files are read, others refused by their names."""

import pytest

from loaders.errors import UnsupportedModelError
from loaders.gguf.known_keys import check_keys
from loaders.gguf.metadata import Settings

COMMON = {
    "block_count": 2,
    "context_length": 4096,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10_000.0,
}
# What converters write, by the families whose files are published.
PUBLISHED = {
    "llama of 2023": (
        "llama",
        {
            "tensor_data_layout": "Meta AI original pth",
            "rope.dimension_count": 64,
            "rope.scale_linear": 4.0,
        },
    ),
    "llama of 2023, scaled": (
        "llama",
        {
            "rope.dimension_count": 64,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.finetuned": True,
        },
    ),
    "llama 3": (
        "llama",
        {
            "vocab_size": 128_256,
            "rope.dimension_count": 128,
            "attention.key_length": 128,
            "attention.value_length": 128,
        },
    ),
    "llama without experts": ("llama", {"expert_count": 0, "expert_used_count": 0}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention.key_length": 128, "attention.value_length": 128}),
    "starcoder2": ("starcoder2", {"attention.layer_norm_epsilon": 1e-5}),
    "phi3": (
        "phi3",
        {
            "rope.dimension_count": 96,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.attn_factor": 1.19,
            "attention.sliding_window": 2047,
        },
    ),
    "gemma": ("gemma", {"attention.key_length": 256, "attention.value_length": 256}),
    "gemma2": (
        "gemma2",
        {
            "attention.key_length": 256,
            "attention.value_length": 256,
            "attention.sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
}


def settings(architecture, own):
    keys = {f"{architecture}.{key}": value for key, value in {**COMMON, **own}.items()}
    return Settings({"general.architecture": architecture, "general.name": "a model", **keys})


@pytest.mark.parametrize("family", PUBLISHED)
def test_settings_of_published_files_are_read(family):
    check_keys(settings(*PUBLISHED[family]))


# A value that changes nothing, and one that does.
SWITCHES = {
    "attention.causal": (True, False),
    "attention.clamp_kqv": (0.0, 8.0),
    "attention.max_alibi_bias": (0.0, 8.0),
    "attention.scale": (0.125, 0.25),
    "attention.sliding_window": (4096, 512),
    "attention.sliding_window_pattern": (0, 6),
    "attention.temperature_length": (0, 8192),
    "attn_logit_softcapping": (0.0, 50.0),
    "embedding_scale": (1.0, 12.0),
    "final_logit_softcapping": (0.0, 30.0),
    "hidden_activation": ("silu", "relu"),
    "logit_scale": (1.0, 0.0625),
    "pooling_type": (0, 3),
    "residual_scale": (1.0, 0.22),
    "rope.dimension_count_swa": (64, 32),
    "rope.dimension_sections": ((0, 0, 0, 0), (16, 24, 24, 0)),
    "rope.freq_base_swa": (10_000.0, 1e6),
    "rope.scaling.alpha": (1.0, 1000.0),
    "rope.scaling.yarn_log_multiplier": (0.0, 0.1),
    "swiglu_clamp_exp": ((0.0, 0.0), (7.0, 7.0)),
    "use_parallel_residual": (False, True),
}


@pytest.mark.parametrize("key", SWITCHES)
def test_a_switch_is_harmless_where_it_changes_nothing_and_else_refused_by_name(key):
    neutral, other = SWITCHES[key]
    turned = {"rope.dimension_count": 64}
    check_keys(settings("qwen2", {**turned, key: neutral}))
    with pytest.raises(UnsupportedModelError, match=rf"qwen2\.{key} is .*choose a file without it"):
        check_keys(settings("qwen2", {**turned, key: other}))


@pytest.mark.parametrize("key", ["attention.brand_new", "ssm.state_size", "altup.num_inputs"])
def test_a_setting_that_nobody_knows_is_refused_by_name(key):
    with pytest.raises(
        UnsupportedModelError, match=rf"says llama\.{key} \(16\), which is not known"
    ):
        check_keys(settings("llama", {key: 16}))


def test_settings_of_other_architectures_and_of_people_do_not_matter():
    own = settings("llama", {})
    others = {"gemma3.attention.brand_new": 1, "general.brand_new": 1, "quantize.imatrix.file": "x"}
    check_keys(Settings({**own.metadata, **others}))
