"""Every rotary embedding that Transformers knows, through `load`, at positions far out."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from loaders.errors import CheckpointError
from loaders.load import load
from tests.models import tiny_llama, tiny_tokenizer, write_plain_checkpoint

# Beyond the 128 positions that the models below are "first trained" for.
PROMPT = torch.randint(0, 500, (1, 300), generator=torch.Generator().manual_seed(0))
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "head_dim": 32}

# As configurations had them until 2025, where a flat `rope_theta` stands beside `rope_scaling`.
SCALINGS = {
    "default": None,
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(16)],
        "long_factor": [2.0 + 0.5 * i for i in range(16)],
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def model_with(name, *, theta=10_000.0):
    """A stock model whose rotary embedding was set by hand, not read from a file."""
    parameters = dict(SCALINGS[name] or {})
    parameters["rope_type"] = parameters.pop("type", parameters.get("rope_type", "default"))
    positions = 128 if name == "dynamic" else 512
    rope = {**parameters, "rope_theta": theta}
    return tiny_llama(rope_parameters=rope, max_position_embeddings=positions, **SHAPE)


def write(folder, model, tokenizer, **changes):
    write_plain_checkpoint(folder, model, tokenizer=tokenizer)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if changes:
        config.pop("rope_parameters", None)
    path.write_text(json.dumps(config | changes))
    return folder


def logits_of(model):
    with torch.inference_mode():
        return model(PROMPT).logits[0, -64:]


def stock_logits(model, *, config=None):
    """Of a stock model in float32, the tables of its rotary embedding included."""
    stock = AutoModelForCausalLM.from_config(config or model.config, dtype=torch.float32).eval()
    stock.load_state_dict(model.state_dict())
    return logits_of(stock)


def distance(found, expected):
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("name", SCALINGS)
def test_logits_far_out_are_those_of_a_stock_model(tmp_path, tokenizer, name, form):
    model = model_with(name)
    old = {"rope_theta": 10_000.0, "rope_scaling": SCALINGS[name]}
    folder = write(tmp_path, model, tokenizer, **(old if form == "rope_scaling" else {}))
    expected = stock_logits(model)
    assert distance(logits_of(load(str(folder), device="cpu").model), expected) < 2e-5


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "default"])
def test_a_loader_that_missed_the_setting_would_be_found_out(name):
    model = model_with(name)
    missed = stock_logits(model, config=model_with("default").config)
    assert distance(missed, stock_logits(model)) > 0.5


def test_the_34b_cards_base_of_a_million_is_read_without_its_code(tmp_path, tokenizer):
    """Its config names remote code, written when Transformers had no such setting."""
    model = model_with("default", theta=1_000_000)
    expected = stock_logits(model)
    code = {
        "AutoConfig": "configuration_llama.LlamaConfig",
        "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
    }
    folder = write(
        tmp_path, model, tokenizer, rope_theta=1_000_000, rope_scaling=None, auto_map=code
    )
    marker = tmp_path / "ran"
    (folder / "modeling_llama.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    assert distance(logits_of(load(str(folder), device="cpu").model), expected) < 2e-5
    assert not marker.exists()
    assert distance(stock_logits(model, config=model_with("default").config), expected) > 0.5


def test_a_rotary_embedding_that_nobody_knows_is_refused(tmp_path, tokenizer):
    scaling = {"rope_type": "nope", "factor": 2.0}
    folder = write(tmp_path, model_with("default"), tokenizer, rope_theta=1e4, rope_scaling=scaling)
    with pytest.raises(CheckpointError, match="nope"):
        load(str(folder), device="cpu")
