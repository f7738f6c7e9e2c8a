"""Biases that a GGUF file holds are added, whichever of them there are; none is dropped."""

import numpy as np
import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from loaders.errors import CheckpointError, TensorError
from loaders.load import load
from tests import models
from tests.gguf_writer import add_biases, as_stored, model_metadata, model_tensors, write_gguf

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": models.VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def in_layers(parts, layers=(0, 1)):
    return [f"model.layers.{layer}.{part}" for layer in layers for part in parts]


BIASES = {
    "queries, keys and values": in_layers(QKV),
    "the output of the attention alone": in_layers(["self_attn.o_proj"]),
    "keys alone": in_layers(["self_attn.k_proj"]),
    "all of the attention": in_layers([*QKV, "self_attn.o_proj"]),
    "all of the MLP": in_layers(MLP),
    "one layer of two": in_layers([*QKV, *MLP], layers=[1]),
    "the head": ["lm_head"],
}
TYPES = {
    "halves": lambda _: "F16",
    "floats": lambda _: "F32",
    "blocks": lambda _: "Q8_0",
    "blocks and halves": lambda name: "F16" if "attn_v" in name or "ffn_up" in name else "Q4_K",
}


def llama(**settings):
    return models.tiny_llama(dtype=torch.float32, **{**SHAPE, **settings})


def mistral():
    return models._filled(MistralForCausalLM(MistralConfig(**SHAPE)), 0, torch.float32)


def phi3():
    return models._filled(Phi3ForCausalLM(Phi3Config(**SHAPE)), 0, torch.float32)


def qwen2():
    return models.tiny_qwen2(dtype=torch.float32, **SHAPE)


def starcoder2():
    config = Starcoder2Config(**SHAPE, use_bias=False)
    model = Starcoder2ForCausalLM(config)
    return models._filled(model, 0, torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer()


def loaded(path, tmp_path):
    return load(str(path), device="cpu", backend="reference", cache_dir=tmp_path / "cache").model


def assert_read_right(model, type_of, tokenizer, tmp_path):
    tensors = model_tensors(model, type_of)
    path = write_gguf(tmp_path / "m.gguf", model_metadata(model, tokenizer), tensors)
    found, expected = loaded(path, tmp_path), as_stored(model, type_of)
    ids = torch.arange(5, 45).view(1, -1)
    with torch.inference_mode():
        logits, wanted = found(ids).logits, expected(ids).logits
    assert float((logits - wanted).abs().max() / wanted.std()) < 2e-5


@pytest.mark.parametrize(
    ("which", "kind"),
    [
        *((which, kind) for which in BIASES for kind in ("halves", "blocks and halves")),
        ("queries, keys and values", "floats"),
        ("queries, keys and values", "blocks"),
    ],
)
def test_a_llama_has_the_biases_of_its_file(tmp_path, tokenizer, which, kind):
    model = llama()
    add_biases(model, BIASES[which])
    assert_read_right(model, TYPES[kind], tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (mistral, in_layers(QKV)),
        (qwen2, in_layers(["self_attn.o_proj", "mlp.up_proj"])),
        (phi3, in_layers(["self_attn.qkv_proj", "mlp.down_proj"])),
        (starcoder2, []),
        (starcoder2, in_layers(["mlp.c_fc"], layers=[0])),
    ],
)
def test_other_architectures_have_the_biases_of_their_file(tmp_path, tokenizer, make, layers):
    model = make()
    add_biases(model, layers)
    assert_read_right(model, TYPES["blocks and halves"], tokenizer, tmp_path)


def test_biases_lie_in_the_order_of_their_rows(tmp_path, tokenizer):
    """GGUF's rows of queries and keys are in pairs; so are these biases in the file."""
    model = llama()
    add_biases(model, in_layers(QKV))
    path = write_gguf(
        tmp_path / "m.gguf",
        model_metadata(model, tokenizer),
        model_tensors(model, lambda _: "F16"),
    )
    found = loaded(path, tmp_path)
    for name in in_layers(QKV):
        wanted = model.get_submodule(name).bias
        torch.testing.assert_close(found.get_submodule(name).bias, wanted.detach())


@pytest.mark.parametrize("name", ["blk.0.attn_norm.bias", "output_norm.bias", "token_embd.bias"])
def test_a_bias_without_a_place_is_refused_by_its_name(tmp_path, tokenizer, name):
    model = llama()
    tensors = model_tensors(model, lambda _: "Q8_0")
    tensors[name] = ("F32", np.ones(256, dtype=np.float32))
    path = write_gguf(tmp_path / "m.gguf", model_metadata(model, tokenizer), tensors)
    with pytest.raises(
        CheckpointError, match=rf"holds {name}, which a llama .*seems to be a .*bias"
    ):
        loaded(path, tmp_path)


def test_a_bias_of_another_size_is_refused(tmp_path, tokenizer):
    model = llama()
    tensors = model_tensors(model, lambda _: "Q8_0")
    tensors["blk.0.attn_k.bias"] = ("F32", np.ones(256, dtype=np.float32))
    path = write_gguf(tmp_path / "m.gguf", model_metadata(model, tokenizer), tensors)
    with pytest.raises(TensorError, match=r"attn_k\.bias is \[256\], expected \[128\]"):
        loaded(path, tmp_path)
