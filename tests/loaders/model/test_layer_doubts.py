"""Packed layers of one value throughout, or with a bias that config.json knows nothing of."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.errors import TensorError
from loaders.load import load
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
)

NAME = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama():
    return tiny_llama(hidden_size=128, intermediate_size=256, num_attention_heads=4)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def fill(folder, part, value=0, *, only=""):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith(part) and only in name:
            tensor.fill_(value)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [0, -1, 0x77777777, 0x12345678])
def test_one_constant_layer_is_suspect_if_its_codes_are_one_value(
    tmp_path, llama, tokenizer, value
):
    folder = write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, group_size=32)
    assert load(str(folder), device="cpu").suspicions == ()
    fill(folder, ".qweight", value, only=NAME)
    found = load(str(folder), device="cpu").suspicions
    if value == 0x12345678:  # eight codes in turn are no single one
        assert found == ()
        return
    assert [suspicion.check for suspicion in found] == ["constant_layers"]
    assert NAME in found[0].reason
    assert "1 of 14 layers" in found[0].reason


def test_a_constant_code_of_three_bits_is_seen_in_words_that_differ(tmp_path, llama, tokenizer):
    folder = write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, bits=3, group_size=32)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    words = tensors[f"{NAME}.qweight"]
    # The code 1 in 32 fields of 3 bits: 96 bits, three words.
    stream = sum(1 << 3 * field for field in range(32))
    for row in range(len(words)):
        word = stream >> 32 * (row % 3) & 0xFFFFFFFF
        words[row] = word - (1 << 32) * (word >> 31)
    save_file(tensors, path, metadata={"format": "pt"})
    (found,) = load(str(folder), device="cpu").suspicions
    assert NAME in found.reason


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (write_gptq_checkpoint, ".qweight"),
        (write_awq_checkpoint, ".qweight"),
        (write_compressed_checkpoint, ".weight_packed"),
    ],
)
def test_layers_that_are_all_constant_are_refused(tmp_path, llama, tokenizer, write, part):
    folder = write(tmp_path, llama, tokenizer=tokenizer, group_size=32)
    fill(folder, part)
    with pytest.raises(TensorError, match=r"each of the 14 packed layers .* download them again"):
        load(str(folder), device="cpu")


def test_a_few_equal_codes_are_no_constant_layer(tmp_path, llama, tokenizer):
    folder = write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, group_size=32)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    first_rows = tensors[f"{NAME}.qweight"][:-1]
    assert first_rows.numel() > 3000
    first_rows.fill_(0)
    save_file(tensors, path, metadata={"format": "pt"})
    assert torch.unique(tensors[f"{NAME}.qweight"]).numel() > 1
    assert load(str(folder), device="cpu").suspicions == ()


def test_a_bias_that_the_model_does_not_have_is_added_and_suspect(tmp_path, llama, tokenizer):
    folder = write_gptq_checkpoint(
        tmp_path, llama, tokenizer=tokenizer, group_size=32, stray_bias=True
    )
    assert load(str(folder), device="cpu").suspicions == ()
    fill(folder, ".bias", 0.5, only=NAME)
    loaded = load(str(folder), device="cpu", backend="reference")
    assert [suspicion.check for suspicion in loaded.suspicions] == ["unexpected_bias"]
    assert f"{NAME}.bias (1 of 14 layers)" in loaded.suspicions[0].reason
    layer = loaded.model.get_submodule(NAME)
    assert torch.equal(layer(torch.zeros(1, 256)), torch.full((1, 128), 0.5))


def test_a_models_own_biases_are_not_suspect(tmp_path, tokenizer):
    qwen2 = tiny_qwen2(hidden_size=128, intermediate_size=256, num_attention_heads=4)
    folder = write_gptq_checkpoint(tmp_path, qwen2, tokenizer=tokenizer, group_size=32)
    assert load(str(folder), device="cpu").suspicions == ()
