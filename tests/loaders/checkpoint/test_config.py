import json

import pytest
import structlog

from loaders.checkpoint.config import make_model_config, read_config
from loaders.errors import CheckpointError, UnsupportedModelError

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_keys_that_name_code_are_taken_out_at_any_depth_and_logged(tmp_path):
    config = {
        **LLAMA,
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "_attn_implementation": "someone/kernel",
        "sub": {"trust_remote_code": True, "list": [{"auto_map": {}, "kept": 1}]},
    }
    with structlog.testing.capture_logs() as logs:
        found = read_config(write_config(tmp_path, config))
    assert found == {**LLAMA, "sub": {"list": [{"kept": 1}]}}
    assert logs[0]["keys"] == [
        "_attn_implementation",
        "auto_map",
        "sub.list[].auto_map",
        "sub.trust_remote_code",
    ]


def test_a_model_type_without_a_native_class_is_refused_even_with_remote_code(tmp_path):
    config = {"model_type": "brand_new", "auto_map": {"AutoConfig": "evil.Config"}}
    with pytest.raises(UnsupportedModelError, match="brand_new"):
        make_model_config(read_config(write_config(tmp_path, config)))


def test_the_rope_base_of_the_config_is_kept(tmp_path):
    """CodeLlama 34B's base is 1 000 000; a loader that misses it produces rubbish."""
    made = make_model_config({**LLAMA, "rope_theta": 1_000_000})
    assert made.rope_parameters["rope_theta"] == 1_000_000


def test_a_folder_without_config_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_endless_nesting_is_refused(tmp_path):
    config: dict = {}
    for _ in range(100):
        config = {"a": config}
    with pytest.raises(CheckpointError, match="nested"):
        read_config(write_config(tmp_path, config))


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": 10**30},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 0},
        {"num_attention_heads": "32"},
        {"intermediate_size": True},
        {"intermediate_size": [128, 10**12]},
        {"max_position_embeddings": -5},
    ],
)
def test_sizes_that_no_model_has_are_refused_before_one_is_built(settings):
    (key,) = settings
    with pytest.raises(CheckpointError, match=f"config.json says {key} "):
        make_model_config({**LLAMA, **settings})


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_a_mixture_of_experts_is_refused_by_name(key):
    with pytest.raises(UnsupportedModelError, match=r"mixtral is a mixture of 8 experts"):
        make_model_config({**LLAMA, "model_type": "mixtral", key: 8})
    make_model_config({**LLAMA, key: 1})
    make_model_config({**LLAMA, key: 8, "enable_moe_block": False})
