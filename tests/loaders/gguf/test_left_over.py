"""Every tensor of a GGUF file is used, or known to be left over, or refused by its name."""

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from loaders.errors import CheckpointError
from loaders.gguf.left_over import kind_of_left_over, refusal
from loaders.load import load
from loaders.model.opened import open_gguf
from tests import models
from tests.gguf_writer import as_stored, model_metadata, model_tensors, write_gguf

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}


def q8_0(_):
    return "Q8_0"


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return models.tiny_llama(dtype=torch.float32, **SHAPE)


def write(path, model, tokenizer, extra=None, **metadata):
    own = {f"llama.{key}": value for key, value in metadata.items()}
    tensors = {**model_tensors(model, q8_0), **(extra or {})}
    return write_gguf(path, {**model_metadata(model, tokenizer), **own}, tensors)


def layers_left_over(model, tokenizer, tmp_path, **metadata):
    """A file of two layers whose settings say that the model has one."""
    path = write(tmp_path / "m.gguf", model, tokenizer, block_count=1, **metadata)
    with capture_logs() as logs:
        loaded = load(str(path), device="cpu", backend="reference", cache_dir=tmp_path / "cache")
    return loaded, [log for log in logs if log["event"] == "tensors_left_over"]


def test_layers_beyond_the_count_are_left_over_and_make_the_file_suspect(
    model, tokenizer, tmp_path
):
    loaded, (log,) = layers_left_over(model, tokenizer, tmp_path)
    assert (log["kind"], log["count"]) == ("layers beyond block_count", 9)
    (suspicion,) = loaded.suspicions
    assert suspicion.check == "unused_layers"
    assert "says 1 layers, and the file holds 1 more" in suspicion.reason
    first = models.tiny_llama(dtype=torch.float32, num_hidden_layers=1, **SHAPE)
    kept = {name: value for name, value in model.state_dict().items() if "layers.1." not in name}
    first.load_state_dict(kept)
    ids = torch.arange(5, 25).view(1, -1)
    with torch.inference_mode():
        wanted = as_stored(first, q8_0)(ids).logits
        torch.testing.assert_close(loaded.model(ids).logits, wanted, rtol=1e-4, atol=1e-4)


def test_layers_that_predict_further_tokens_are_left_over_unsuspected(model, tokenizer, tmp_path):
    loaded, (log,) = layers_left_over(model, tokenizer, tmp_path, nextn_predict_layers=1)
    assert log["kind"] == "layers that predict further tokens (NextN)"
    assert loaded.suspicions == ()


def test_a_whole_file_leaves_nothing_over(model, tokenizer, tmp_path):
    opened = open_gguf(write(tmp_path / "m.gguf", model, tokenizer), tmp_path / "cache")
    assert opened.suspicions == ()


def test_rotation_tables_are_left_over(model, tokenizer, tmp_path):
    table = {"blk.0.attn_rot_embd.weight": ("F32", np.ones(16, dtype=np.float32))}
    with capture_logs() as logs:
        open_gguf(write(tmp_path / "m.gguf", model, tokenizer, table), tmp_path / "cache")
    (log,) = [log for log in logs if log["event"] == "tensors_left_over"]
    assert log["kind"].startswith("rotation tables")


@pytest.mark.parametrize(
    ("name", "seems"),
    [
        ("blk.0.ffn_gate_exps.weight", "a mixture's expert"),
        ("blk.0.ffn_gate.0.weight", "a mixture's expert"),
        ("blk.0.ffn_gate_inp.weight", "a mixture's expert"),
        ("blk.1.nextn.eh_proj.weight", "a part of a layer that predicts further tokens"),
        ("blk.0.attn_q.weight.lora_a", "a part of a LoRA adapter"),
        ("blk.0.attn_q.scale", "a scale of weights that are packed another way"),
        ("blk.0.ffn_down.input_scale", "a scale of weights that are packed another way"),
        ("blk.0.attn_norm.bias", "a norm's bias"),
        ("blk.0.attn_sub_norm.weight", "a further norm"),
        ("blk.0.attn_qkv.weight", "a projection of the attention in another form"),
        ("blk.0.ssm_a", "a part of a layer with a state"),
        ("v.patch_embd.weight", "a part of an encoder of images or sound"),
        ("cls.output.weight", "the head of a model that ranks or embeds"),
        ("position_embd.weight", "an embedding of positions"),
        ("blk.x.attn_q.weight", "a projection of the attention in another form"),
        ("mystery", "of no known kind"),
    ],
)
def test_any_other_tensor_is_refused_by_its_name_and_what_it_seems_to_be(
    model, tokenizer, tmp_path, name, seems
):
    extra = {name: ("F32", np.ones(64, dtype=np.float32))}
    path = write(tmp_path / "m.gguf", model, tokenizer, extra)
    with pytest.raises(CheckpointError) as caught:
        open_gguf(path, tmp_path / "cache")
    assert f"holds {name}, which a llama model has no place for; it seems to be" in str(
        caught.value
    )
    assert seems in str(caught.value)


def test_many_tensors_without_a_place_are_counted():
    error = refusal(["blk.0.attn_q.scale", "blk.1.attn_q.scale", "x"], "llama")
    assert "(and 2 more)" in str(error)


def test_what_belongs_to_the_models_own_layers_is_never_left_over():
    for name in ("blk.1.attn_q.weight", "blk.1.nextn.eh_proj.weight", "output.weight", "blk.1"):
        assert kind_of_left_over(name, 2, 1) is None
    assert kind_of_left_over("blk.3.attn_q.weight", 2, 1) == "layers beyond block_count"
