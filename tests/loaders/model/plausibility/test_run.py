"""All checks together, on files as they are loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.load import load
from loaders.model.plausibility import run
from tests.models import (
    CHATML,
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

SMALL = {"hidden_size": 256, "intermediate_size": 512}
THINKING = CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"


def suspicions_of(folder):
    loaded = load(str(folder), device="cpu", self_test=True)
    return {suspicion.check: suspicion.reason for suspicion in loaded.suspicions}


def roll_scales(folder):
    """Move every row of scales to the next group, as no settings could tell."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith(".scales"):
            tensors[name] = tensor.roll(1, 0).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_plain_checkpoint, {}),
        (write_gptq_checkpoint, {"bits": 8, "group_size": 32, "desc_act": True}),
        (write_gptq_checkpoint, {"bits": 3, "group_size": 64, "sym": False}),
        (write_awq_checkpoint, {"group_size": 64}),
        (write_compressed_checkpoint, {"group_size": 32}),
    ],
)
def test_random_models_are_not_suspect_in_any_format(write, options, tmp_path, tiny_tokenizer):
    write(tmp_path, tiny_qwen2(**SMALL), tokenizer=tiny_tokenizer, **options)
    assert suspicions_of(tmp_path) == {}


@pytest.mark.parametrize("template", [None, THINKING], ids=["base", "reasoning"])
def test_base_and_reasoning_models_are_not_suspect(template, tmp_path):
    tokenizer = tiny_tokenizer(chat_template=template)
    write_gptq_checkpoint(tmp_path, tiny_llama(**SMALL), group_size=64, tokenizer=tokenizer)
    assert suspicions_of(tmp_path) == {}


def test_what_is_suspect_is_loaded_all_the_same_and_logged_once_a_check(
    tmp_path, tiny_tokenizer, capsys
):
    write_gptq_checkpoint(tmp_path, tiny_llama(**SMALL), group_size=32, tokenizer=tiny_tokenizer)
    roll_scales(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "alpha": 8.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = suspicions_of(tmp_path)
    assert found.keys() == {"scales_elsewhere", "unused_rope_settings"}
    logged = capsys.readouterr().out
    assert logged.count("suspect ") == 2
    assert all(reason in logged for reason in found.values())


def test_a_check_that_cannot_be_made_says_nothing_and_is_logged(
    tmp_path, tiny_tokenizer, monkeypatch, capsys
):
    def fail(*_):
        raise ZeroDivisionError("of a strange model")

    monkeypatch.setattr(run, "check_prediction", fail)
    write_gptq_checkpoint(tmp_path, tiny_llama(**SMALL), group_size=32, tokenizer=tiny_tokenizer)
    roll_scales(tmp_path)
    assert suspicions_of(tmp_path).keys() == {"scales_elsewhere"}
    assert "could not be made: ZeroDivisionError: of a strange model" in capsys.readouterr().out


def test_nothing_is_left_behind_in_the_model(tmp_path, tiny_tokenizer):
    write_gptq_checkpoint(tmp_path, tiny_llama(**SMALL), group_size=32, tokenizer=tiny_tokenizer)
    token_ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        unchecked = load(str(tmp_path), device="cpu").model(token_ids).logits
        checked = load(str(tmp_path), device="cpu", self_test=True).model(token_ids).logits
    assert torch.equal(unchecked, checked)
