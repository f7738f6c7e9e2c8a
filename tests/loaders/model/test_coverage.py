"""Every tensor of a checkpoint is used, is a known left-over, or keeps it from being loaded."""

import copy
import json

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaForCausalLM

from loaders.errors import TensorError
from loaders.load import load
from loaders.model.opened import open_checkpoint
from tests.dequantize import dequantized_model
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
HEAD_DIM = 32
ATTENTION = "model.layers.0.self_attn"
Q = f"{ATTENTION}.q_proj"
TABLE = f"{ATTENTION}.rotary_emb.inv_freq"
MAX_LOGIT_ERROR = 2e-3  # weights that are packed as halves; 8e-4 measured at most, 2026-11


@pytest.fixture(scope="module")
def llama():
    return tiny_llama(**SMALL)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def plain(tmp_path, llama, tokenizer):
    return write_plain_checkpoint(tmp_path / "plain", llama, tokenizer=tokenizer)


@pytest.fixture
def packed(tmp_path, llama, tokenizer):
    return write_gptq_checkpoint(
        tmp_path / "packed", llama, tokenizer=tokenizer, bits=8, group_size=32
    )


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, added=None, *, removed=()):
    path = folder / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if k not in removed} | (added or {})
    save_file(tensors, path, metadata={"format": "pt"})


def load_logged(folder):
    """Load it; return it with how many tensors of each kind were left over."""
    with structlog.testing.capture_logs() as logs:
        loaded = load(str(folder), device="cpu", backend="reference")
    left = {e["kind"]: e["count"] for e in logs if e["event"] == "tensors_left_over"}
    return loaded, left


def logits_of(model):
    ids = torch.randint(0, 500, (1, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids).logits


def assert_answers_alike(loaded, reference):
    expected = logits_of(reference)
    error = (logits_of(loaded.model) - expected).abs().max() / expected.std()
    assert float(error) < MAX_LOGIT_ERROR


def rotary_table(base=10_000.0):
    return base ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)


LEFT_OVER = {
    "rotary tables": {TABLE: rotary_table(), "model.layers.1.self_attn.rotary_emb.inv_freq": None},
    "causal masks": {
        f"{ATTENTION}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril(),
        f"{ATTENTION}.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril(),
        f"{ATTENTION}.attn.masked_bias": torch.tensor(-1e4),
    },
    "position tables": {"model.embeddings.position_ids": torch.arange(64)[None]},
    "KV-cache scales": {
        f"{ATTENTION}.k_scale": torch.tensor(0.5),
        f"{ATTENTION}.v_scale": torch.tensor([0.25]),
        f"{ATTENTION}.attn.k_scale": torch.tensor(0.5),
        f"{ATTENTION}.kv_scale": torch.tensor(0.5),
        f"{ATTENTION}.k_proj.k_scale": torch.tensor(0.5),
        f"{ATTENTION}.v_proj.output_scale": torch.tensor(0.5),
    },
    "all-zero biases": {
        f"{Q}.bias": torch.zeros(128).half(),
        "model.layers.1.mlp.down_proj.bias": torch.zeros(128).half(),
        "lm_head.bias": torch.zeros(512),
    },
    "group indices in order": {
        f"{Q}.g_idx": torch.arange(128, dtype=torch.int32) // 32,
        f"{ATTENTION}.o_proj.g_idx": torch.zeros(128, dtype=torch.int32),
    },
}
LEFT_OVER["rotary tables"]["model.layers.1.self_attn.rotary_emb.inv_freq"] = rotary_table().half()


@pytest.mark.parametrize("kind", LEFT_OVER)
def test_known_left_overs_are_logged_by_kind_and_change_nothing(plain, llama, kind):
    edit_tensors(plain, LEFT_OVER[kind])
    loaded, left = load_logged(plain)
    assert left == {kind: len(LEFT_OVER[kind])}
    assert loaded.suspicions == ()
    assert_answers_alike(loaded, copy.deepcopy(llama).float())


REFUSED = {
    "a bias": ({f"{Q}.bias": torch.full((128,), 0.5)}, "a bias without a place"),
    "one number of a bias": ({"lm_head.bias": torch.eye(512)[3]}, "a bias without a place"),
    "a norm of another model's": ({f"{ATTENTION}.q_norm.weight": torch.ones(32)}, "a norm"),
    "scales": ({f"{Q}.scales": torch.ones(4, 128)}, "a part of a packed layer"),
    "an act order": (
        {f"{Q}.g_idx": torch.arange(128, dtype=torch.int32) % 4},
        "a part of a packed layer",
    ),
    "a mask that is none": ({f"{ATTENTION}.attn.bias": torch.ones(128)}, "a bias without"),
    "a LoRA": ({f"{Q}.lora_A.weight": torch.ones(8, 128)}, "a LoRA adapter's"),
    "an expert": (
        {"model.layers.0.mlp.experts.0.w1.weight": torch.ones(8, 8)},
        "a part of a mixture",
    ),
    "prediction of more tokens": ({"mtp.layers.0.fc.weight": torch.ones(8, 8)}, "a weight"),
    "eyes": ({"model.vision_tower.patch.weight": torch.ones(8, 8)}, "a weight"),
    "a layer's other weight": ({"model.layers.0.mlp.w4.weight": torch.ones(8, 8)}, "a weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_by_name_with_what_it_seems_to_be(plain, case):
    tensors, seems = REFUSED[case]
    edit_tensors(plain, {k: v.contiguous() for k, v in tensors.items()})
    (name,) = tensors
    with pytest.raises(TensorError, match=rf"{name} \(\w+ .* it seems to be {seems}"):
        load(str(plain), device="cpu")


def test_left_overs_beside_packed_layers_are_told_alike(packed):
    reference = dequantized_model(packed)
    edit_tensors(packed, LEFT_OVER["KV-cache scales"] | {TABLE: rotary_table()})
    loaded, left = load_logged(packed)
    assert left == {"KV-cache scales": 6, "rotary tables": 1}
    assert_answers_alike(loaded, reference)
    edit_tensors(packed, {f"{ATTENTION}.q_norm.weight": torch.ones(32)})
    with pytest.raises(TensorError, match=r"q_norm\.weight .* seems to be a norm"):
        load(str(packed), device="cpu")


def test_floats_of_64_bits_beside_packed_layers_are_read_or_refused_by_their_dtype(packed):
    edit_tensors(packed, {TABLE: rotary_table().double()})
    assert load_logged(packed)[1] == {"rotary tables": 1}
    scales = load_file(packed / "model.safetensors")[f"{Q}.scales"]
    edit_tensors(packed, {f"{Q}.scales": scales.double()})
    with pytest.raises(TensorError, match=r"q_proj\.scales is F64, expected F16 or BF16 or F32"):
        load(str(packed), device="cpu")


def test_a_dense_copy_of_a_packed_layer_is_refused(packed):
    edit_tensors(packed, {f"{Q}.weight": torch.ones(128, 128)})
    with pytest.raises(TensorError, match=r"q_proj\.weight .* a dense copy of a packed layer"):
        load(str(packed), device="cpu")


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_embedding_stored_beside_a_packed_head_is_left_over_where_they_are_tied(
    tmp_path, tokenizer, is_tied
):
    folder = write_gptq_checkpoint(
        tmp_path / "model", tiny_llama(**SMALL), tokenizer=tokenizer, group_size=32, lm_head=True
    )
    edit_config(folder, tie_word_embeddings=is_tied)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, {"lm_head.weight": table.clone()})
    if is_tied:
        assert load_logged(folder)[1] == {"copies of the embedding": 1}
        edit_tensors(folder, {"lm_head.weight": table * 2})
    with pytest.raises(TensorError, match=r"lm_head\.weight .* a dense copy of a packed layer"):
        load(str(folder), device="cpu")


def test_a_group_index_beside_awq_layers_counts_where_it_is_no_order(tmp_path, llama, tokenizer):
    folder = write_awq_checkpoint(tmp_path, llama, tokenizer=tokenizer, group_size=32)
    edit_tensors(folder, {f"{Q}.g_idx": torch.arange(128, dtype=torch.int32) // 32})
    assert load_logged(folder)[1] == {"group indices in order": 1}
    edit_tensors(folder, {f"{Q}.g_idx": torch.arange(128, dtype=torch.int32).flip(0) // 32})
    with pytest.raises(TensorError, match=r"q_proj\.g_idx"):
        load(str(folder), device="cpu")


def test_a_model_with_biases_uses_them(tmp_path, tokenizer):
    qwen2 = tiny_qwen2(**SMALL)
    folder = write_plain_checkpoint(tmp_path, qwen2, tokenizer=tokenizer)
    loaded, left = load_logged(folder)
    assert left == {}
    assert_answers_alike(loaded, qwen2.float())
    edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(TensorError, match=r"proj\.bias .* attention_bias"):
        load(str(folder), device="cpu")


def test_what_a_class_drops_in_silence_is_accounted_for_as_well(plain, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"q_proj", "mtp"])
    edit_tensors(plain, {f"{Q}.bias": torch.ones(128)})
    with pytest.raises(TensorError, match=r"q_proj\.bias"):
        load(str(plain), device="cpu")
    edit_tensors(plain, {"mtp.fc.weight": torch.ones(8, 8)}, removed=[f"{Q}.bias"])
    assert load_logged(plain)[1] == {"multi-token prediction": 1}


def test_what_a_class_lets_be_missing_in_silence_is_missed(plain, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"lm_head"])
    edit_tensors(plain, removed=["lm_head.weight"])
    with pytest.raises(TensorError, match=r"lacks 1 tensors .* lm_head\.weight"):
        load(str(plain), device="cpu")


def neox():
    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPTNeoXForCausalLM(config).half()


def test_gpt_neox_masks_are_logged_and_a_bias_of_their_name_is_refused(tmp_path, tokenizer):
    folder = write_plain_checkpoint(tmp_path, neox(), tokenizer=tokenizer)
    attention = "gpt_neox.layers.0.attention"
    tables = {
        f"{attention}.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril(),
        f"{attention}.masked_bias": torch.tensor(-1e9),
        f"{attention}.rotary_emb.inv_freq": 10_000.0 ** -(torch.arange(0, 4, 2) / 4),
    }
    edit_tensors(folder, tables)
    loaded, left = load_logged(folder)
    assert left == {"causal masks": 2, "rotary tables": 1}
    assert loaded.suspicions == ()
    edit_tensors(folder, {f"{attention}.bias": torch.ones(64)})
    with pytest.raises(TensorError, match=r"attention\.bias .* a bias without a place"):
        load(str(folder), device="cpu")


def test_zero_biases_of_packed_layers_are_logged(tmp_path, llama, tokenizer):
    folder = write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, stray_bias=True)
    assert load_logged(folder)[1] == {"all-zero biases": 14}


def test_two_tensors_for_one_place_are_refused(plain):
    edit_tensors(plain, {"norm.weight": torch.ones(128).half()})
    with pytest.raises(TensorError, match=r"norm\.weight and \S*norm\.weight are both read as"):
        load(str(plain), device="cpu")


@pytest.mark.parametrize(
    ("config", "name", "kind"),
    [
        ({"num_nextn_predict_layers": 1}, "mtp.fc.weight", "multi-token prediction"),
        ({"mtp_num_hidden_layers": 1}, "model.mtp.fc.weight", "multi-token prediction"),
        ({"vision_config": {"depth": 2}}, "visual.patch.weight", "parts for images and sound"),
        ({"audio_config": {"depth": 2}}, "audio_tower.c.weight", "parts for images and sound"),
    ],
)
def test_parts_of_a_larger_model_need_a_word_in_the_config(plain, config, name, kind):
    edit_tensors(plain, {name: torch.ones(8, 8)})
    with pytest.raises(TensorError, match=name):
        load(str(plain), device="cpu")
    edit_config(plain, **config)
    assert load_logged(plain)[1] == {kind: 1}


@pytest.mark.parametrize("write", [write_plain_checkpoint, write_gptq_checkpoint])
def test_layers_beyond_the_configs_number_are_left_over_and_suspect(
    tmp_path, llama, tokenizer, write
):
    folder = write(tmp_path, llama, tokenizer=tokenizer)
    edit_config(folder, num_hidden_layers=1)
    loaded, left = load_logged(folder)
    assert list(left) == ["layers beyond num_hidden_layers"]
    assert [s.check for s in loaded.suspicions] == ["unused_layers"]
    assert "layer 1, config.json says num_hidden_layers 1" in loaded.suspicions[0].reason
    assert not any(".layers.1." in name for name in loaded.tensors)
    edit_tensors(
        folder, removed=[n for n in load_file(folder / "model.safetensors") if "s.1." in n]
    )
    assert_answers_alike(loaded, dequantized_model(folder))


def test_layers_that_predict_more_tokens_are_not_suspect(plain):
    edit_config(plain, num_hidden_layers=1, num_nextn_predict_layers=1)
    opened = open_checkpoint(plain, None, None)
    assert opened.suspicions == ()
    assert opened.unused_layers


def test_a_stored_rotary_table_that_config_contradicts_is_suspect(plain):
    edit_tensors(plain, {TABLE: rotary_table(1e6)})
    loaded, left = load_logged(plain)
    assert left == {"rotary tables": 1}
    assert [s.check for s in loaded.suspicions] == ["rotary_table"]
    edit_config(plain, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert load_logged(plain)[0].suspicions == ()


def test_a_table_without_the_scaling_that_config_asks_for_is_what_old_models_stored(plain):
    edit_tensors(plain, {TABLE: rotary_table()})
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    edit_config(plain, rope_parameters=linear)
    assert load_logged(plain)[0].suspicions == ()


def tied(tmp_path, tokenizer):
    model = tiny_llama(**SMALL, tie_word_embeddings=True)
    folder = write_plain_checkpoint(tmp_path, model, tokenizer=tokenizer)
    return folder, load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_tied_heads_copy_is_a_left_over(tmp_path, tokenizer, dtype):
    folder, embedding = tied(tmp_path, tokenizer)
    reference = dequantized_model(folder)
    edit_tensors(folder, {"lm_head.weight": embedding.to(dtype)})
    loaded, left = load_logged(folder)
    assert left == {"copies of the embedding": 1}
    assert loaded.suspicions == ()
    if dtype is not torch.bfloat16:  # whose rounding is in the answers
        assert_answers_alike(loaded, reference)


def test_a_tied_head_with_other_values_is_used_and_suspect(tmp_path, tokenizer):
    folder, embedding = tied(tmp_path, tokenizer)
    edit_tensors(folder, {"lm_head.weight": embedding.flip(0).contiguous()})
    loaded, left = load_logged(folder)
    assert left == {}
    assert [s.check for s in loaded.suspicions] == ["untied_head"]
    edit_config(folder, tie_word_embeddings=False)
    assert_answers_alike(loaded, dequantized_model(folder))


def test_a_tied_model_may_store_its_head_alone(tmp_path, tokenizer):
    folder, embedding = tied(tmp_path, tokenizer)
    reference = dequantized_model(folder)
    edit_tensors(folder, {"lm_head.weight": embedding}, removed=["model.embed_tokens.weight"])
    assert_answers_alike(load_logged(folder)[0], reference)
