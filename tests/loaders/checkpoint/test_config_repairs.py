"""What config.json says in older spellings, and of tokens without a row."""

import pytest

from loaders.checkpoint.config import make_model_config

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512}
LISTS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
PHI3 = {
    "model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 4096, "original_max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize("pad", [-1, 512, 32_000, 10**9, 2**70, [0, 1], "<pad>", 1.5, True])
def test_a_pad_id_without_a_row_is_taken_away(pad):
    assert make_model_config({**LLAMA, "pad_token_id": pad}).pad_token_id is None


@pytest.mark.parametrize("pad", [0, 511, None])
def test_a_pad_id_with_a_row_is_kept(pad):
    assert make_model_config({**LLAMA, "pad_token_id": pad}).pad_token_id == pad


@pytest.mark.parametrize("model_type", ["phi3", "opt", "modernbert-decoder", "gpt_bigcode"])
def test_the_pad_id_that_a_class_has_by_default_needs_a_row_too(model_type):
    made = make_model_config({"model_type": model_type, "vocab_size": 1})
    assert made.pad_token_id in (None, 0)


def test_the_pad_id_of_a_models_text_part_needs_a_row_too():
    text = {"model_type": "gemma3_text", "vocab_size": 512, "pad_token_id": 10**9}
    made = make_model_config({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert made.get_text_config().pad_token_id is None


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_phi3s_older_names_of_longrope_mean_it(key, name):
    made = make_model_config({**PHI3, "rope_scaling": {key: name, **LISTS}})
    assert made.rope_parameters["rope_type"] == "longrope"
    assert made.rope_parameters["original_max_position_embeddings"] == 512
    assert made.rope_parameters["long_factor"] == LISTS["long_factor"]


def test_yarn_without_longropes_lists_stays_yarn():
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    made = make_model_config({**LLAMA, "rope_scaling": rope})
    assert made.rope_parameters["rope_type"] == "yarn"
