"""The `stock` backend, as far as it goes without the packages that it stands for.

Where Transformers' own quantizer would come in stands a fake. What is checked is what it is given,
what is made of its answer, and what is said where the packages are missing.
"""

import importlib.util
import json
from collections import defaultdict

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from engine.execution.decoder import make_decoder
from loaders.errors import BackendError, UnsupportedQuantizationError
from loaders.load import load
from loaders.model import build, stock
from loaders.model.kernels.resolve import BACKENDS, backend_names
from loaders.model.stock import StockLinear
from tests.dequantize import dequantized_model
from tests.models import (
    tiny_llama,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

SHAPE = {"hidden_size": 256, "intermediate_size": 384}
PROMPT = torch.arange(20)[None]


class ForeignLinear(nn.Module):
    """A quantised layer of another library's: no `nn.Linear`, but with its sizes."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", linear.weight.data)

    def forward(self, x):
        return nn.functional.linear(x, self.qweight)


@pytest.fixture
def checkpoint(tmp_path):
    return write_gptq_checkpoint(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())


@pytest.fixture
def transformers_with_packages(monkeypatch, checkpoint):
    """Stands for Transformers with optimum and GPTQModel; notes what it was asked."""
    asked = {}

    def from_pretrained(folder, **arguments):
        asked.update(arguments, folder=folder)
        model = dequantized_model(folder)
        for block in model.model.layers:
            for parent in (block.self_attn, block.mlp):
                for name, linear in list(parent.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(parent, name, ForeignLinear(linear))
        return model, {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": set()}

    class Fake(LlamaForCausalLM):
        """Is made without weights as any class, and read in the way above."""

    Fake.from_pretrained = staticmethod(from_pretrained)
    classes = defaultdict(lambda: Fake)
    monkeypatch.setattr(build, "MODEL_FOR_CAUSAL_LM_MAPPING", classes)
    monkeypatch.setattr(stock, "find_spec", lambda name: object())
    return asked


def test_stock_can_be_asked_for_and_is_never_chosen():
    assert "stock" in backend_names()
    assert "stock" not in {backend.name for backend in BACKENDS}


@pytest.mark.parametrize(
    ("write", "packages"),
    [(write_gptq_checkpoint, "optimum and gptqmodel"), (write_awq_checkpoint, "gptqmodel")],
)
def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch, write, packages):
    folder = write(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    monkeypatch.setattr(stock, "find_spec", lambda name: None)
    with pytest.raises(
        BackendError, match=rf"stock needs {packages} for .*constraints-stock\.txt '\.\[stock\]'"
    ):
        load(str(folder), device="cpu", backend="stock")


@pytest.mark.skipif(
    importlib.util.find_spec("optimum") is not None, reason="optimum is installed here"
)
def test_what_transformers_itself_misses_is_said_the_same_way(checkpoint, monkeypatch):
    """Here it really is asked, and really lacks the packages."""
    monkeypatch.setattr(stock, "find_spec", lambda name: object())
    with pytest.raises(BackendError, match=r"optimum.*constraints-stock\.txt"):
        load(str(checkpoint), device="cpu", backend="stock")


def test_a_checkpoint_without_settings_is_not_for_stock(tmp_path):
    folder = write_plain_checkpoint(tmp_path, tiny_llama(**SHAPE), tokenizer=tiny_tokenizer())
    with pytest.raises(BackendError, match="describes nothing"):
        load(str(folder), device="cpu", backend="stock")


def test_transformers_gets_the_checkpoints_own_settings_and_none_of_ours(
    checkpoint, transformers_with_packages
):
    load(str(checkpoint), device="cpu", backend="stock")
    asked = transformers_with_packages
    assert asked["config"].quantization_config["quant_method"] == "gptq"
    assert "quantization_config" not in asked
    assert asked["trust_remote_code"] is False


def test_compressed_tensors_are_asked_for_as_plain_weights(tmp_path, transformers_with_packages):
    """Packed, they would compute only inside Transformers' own forward."""
    folder = write_compressed_checkpoint(
        tmp_path / "packed", tiny_llama(**SHAPE), tokenizer=tiny_tokenizer()
    )
    load(str(folder), device="cpu", backend="stock")
    asked = transformers_with_packages["config"].quantization_config
    assert (asked["quant_method"], asked["dequantize"]) == ("compressed-tensors", True)


def test_what_is_not_read_goes_to_transformers_only_where_it_is_asked_for(
    checkpoint, transformers_with_packages
):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
    }
    path.write_text(json.dumps(config))
    (checkpoint / "quantize_config.json").unlink()
    with pytest.raises(UnsupportedQuantizationError, match="int-quantized"):
        load(str(checkpoint), device="cpu")
    assert "config" not in transformers_with_packages
    load(str(checkpoint), device="cpu", backend="stock")
    assert transformers_with_packages["config"].quantization_config["format"] == "int-quantized"


def test_what_transformers_made_runs_in_the_engines_own_layers(
    checkpoint, transformers_with_packages
):
    loaded = load(str(checkpoint), device="cpu", backend="stock")
    assert loaded.provenance.backend == "stock"
    assert loaded.provenance.is_eager_only
    assert sum(isinstance(m, StockLinear) for m in loaded.model.modules()) == 2 * 7
    with torch.inference_mode():
        found = loaded.model(PROMPT).logits
        expected = dequantized_model(checkpoint)(PROMPT).logits
    assert float((found - expected).abs().max() / expected.std()) < 1e-4
    make_decoder(loaded.model, max_model_len=64)
