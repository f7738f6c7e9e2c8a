"""Checkpoints of the rarer formats through `load`, against independently dequantised weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.errors import (
    CheckpointError,
    TensorError,
    UnsupportedModelError,
    UnsupportedQuantizationError,
)
from loaders.load import load
from tests.dequantize import dequantized_model
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
)

# Of `test_load`: the largest difference of any logit, relative to their spread.
MAX_LOGIT_ERROR = {"reference": 2e-5, "auto": 0.05}
PROMPT = torch.randint(0, 500, (1, 33), generator=torch.Generator().manual_seed(0))
NUM_NEW = 8

COMPRESSED_CASES = {
    **{f"{bits}-bit group 128": {"bits": bits} for bits in (2, 3, 4, 6, 8)},
    "group 32": {"group_size": 32},
    "one scale an output": {"group_size": -1},
    "one scale an output, 8-bit": {"group_size": -1, "bits": 8},
    "one scale a layer": {"group_size": None},
    "zero points": {"sym": False, "group_size": 32},
    "zero points, 3-bit": {"sym": False, "bits": 3},
    "zero points, one scale an output, 8-bit": {"sym": False, "bits": 8, "group_size": -1},
    "act order by group": {"actorder": "group"},
    "act order by weight": {"actorder": "weight"},
    "bfloat16 scales": {"dtype": torch.bfloat16},
    "groups of layers": {
        "own_groups": {"re:.*mlp.*": 8, "model.layers.0.mlp.down_proj": 2},
    },
}


@pytest.fixture(scope="module")
def llama():
    """Inputs of 512 and 1408: some groups of the GEMV versions fill whole words, some do not."""
    return tiny_llama()


@pytest.fixture(scope="module")
def small_llama():
    return tiny_llama(hidden_size=256, intermediate_size=384)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def edit_settings(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


def edit_tensors(folder, **changes):
    """Replace tensors by name; a function gets the old one, None takes it away."""
    tensors = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        old = tensors.pop(name.replace("/", "."), None)
        if change is not None:
            tensors[name.replace("/", ".")] = change(old).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def check_answers(folder, backend, settings=None):
    """Logits are those of the dequantised weights, and so are the tokens of a greedy answer.

    Another token is forgiven only where the two best all but tie.
    """
    expected = dequantized_model(folder, settings)
    found = load(str(folder), device="cpu", backend=backend).model
    with torch.inference_mode():
        answer = expected.generate(PROMPT, max_new_tokens=NUM_NEW, do_sample=False)
        right, ours = (model(answer[:, :-1]).logits[0] for model in (expected, found))
    allowed = MAX_LOGIT_ERROR[backend] * right.std()
    assert float((ours - right).abs().max()) < allowed
    lost = right.amax(-1) - right.gather(1, ours.argmax(-1, keepdim=True))[:, 0]
    assert float(lost.max()) < 2 * allowed


@pytest.mark.parametrize(
    ("group_size", "backend"),
    [(32, "auto"), (64, "reference"), (128, "auto"), (128, "reference"), (-1, "auto")],
)
@pytest.mark.parametrize("version", ["gemv", "gemv_fast"])
def test_awq_gemv_layouts_answer_as_their_dequantised_weights(
    tmp_path, llama, tokenizer, version, group_size, backend
):
    folder = write_awq_checkpoint(
        tmp_path, llama, tokenizer=tokenizer, version=version, group_size=group_size
    )
    check_answers(folder, backend)


@pytest.mark.parametrize("case", COMPRESSED_CASES)
def test_pack_quantized_layouts_answer_as_their_dequantised_weights(
    tmp_path, small_llama, tokenizer, case
):
    folder = write_compressed_checkpoint(
        tmp_path, small_llama, tokenizer=tokenizer, **COMPRESSED_CASES[case]
    )
    for backend in ("reference", "auto"):
        check_answers(folder, backend)


def test_biases_beside_pack_quantized_weights_are_added(tmp_path, tokenizer):
    folder = write_compressed_checkpoint(
        tmp_path, tiny_qwen2(hidden_size=256, intermediate_size=384), tokenizer=tokenizer
    )
    check_answers(folder, "auto")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight_shape", lambda old: old.flip(0), r"weight_shape says \[384, 256\]"),
        ("weight_scale", lambda old: old * torch.nan, "NaN"),
        ("weight_scale", lambda old: old[:, :1], r"weight_scale is \[256, 1\]"),
        ("weight_g_idx", lambda old: torch.arange(384, dtype=torch.int32), "groups 0 to 383"),
        ("weight_packed", lambda old: old.long(), "I64, expected I32"),
        ("weight_scale", None, "weight_scale is missing"),
    ],
)
def test_damaged_pack_quantized_layers_are_refused_by_name(
    tmp_path, small_llama, tokenizer, key, change, message
):
    folder = write_compressed_checkpoint(tmp_path, small_llama, tokenizer=tokenizer)
    edit_tensors(folder, **{f"model/layers/0/mlp/down_proj/{key}": change})
    with pytest.raises(TensorError, match=message):
        load(str(folder), device="cpu")


def test_asymmetric_layers_need_their_zero_points(tmp_path, small_llama, tokenizer):
    folder = write_compressed_checkpoint(tmp_path, small_llama, tokenizer=tokenizer, sym=False)
    edit_tensors(folder, **{"model/layers/0/mlp/down_proj/weight_zero_point": None})
    with pytest.raises(TensorError, match="weight_zero_point is missing"):
        load(str(folder), device="cpu")


def test_an_act_order_that_was_never_filled_in_says_nothing(tmp_path, small_llama, tokenizer):
    folder = write_compressed_checkpoint(tmp_path, small_llama, tokenizer=tokenizer)
    expected = load(str(folder), device="cpu", backend="reference").model(PROMPT).logits
    unset = torch.full((384,), -1, dtype=torch.int32)
    edit_tensors(folder, **{"model/layers/0/mlp/down_proj/weight_g_idx": lambda _: unset})
    found = load(str(folder), device="cpu", backend="reference").model(PROMPT).logits
    assert torch.equal(found, expected)


def test_offsets_that_are_nan_are_refused(tmp_path, llama, tokenizer):
    folder = write_awq_checkpoint(tmp_path, llama, tokenizer=tokenizer, version="gemv_fast")
    name = "model/layers/0/mlp/down_proj/qzeros"
    edit_tensors(folder, **{name: lambda old: old * torch.nan})
    with pytest.raises(TensorError, match=r"down_proj\.zeros holds NaN"):
        load(str(folder), device="cpu")


def test_awq_settings_in_its_own_file_are_read(tmp_path, llama, tokenizer):
    """As AutoAWQ wrote them before Transformers knew of it."""
    folder = write_awq_checkpoint(tmp_path, llama, tokenizer=tokenizer, version="gemv")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    own = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMV"}
    (folder / "quant_config.json").write_text(json.dumps(own))
    told = {"quant_method": "awq", "version": "gemv", "group_size": 128}
    check_answers(folder, "reference", told)


# Repositories' main branches of before August 2023, made with GPTQ-for-LLaMa.
OLD_CASES = {
    "gptq_model-4bit-128g.safetensors": {"desc_act": True},
    "Model-7B-GPTQ-4bit-128g.no-act-order.safetensors": {"store_g_idx": False},
    "Model-7B-GPTQ-4bit-32g.act-order.safetensors": {"group_size": 32, "desc_act": True},
    "gptq_model-4bit--1g.safetensors": {"group_size": -1, "stray_bias": True},
}


@pytest.mark.parametrize("scales_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("file_name", OLD_CASES)
def test_gptq_without_any_settings_answers_as_its_dequantised_weights(
    tmp_path, small_llama, tokenizer, file_name, scales_dtype
):
    parameters = OLD_CASES[file_name]
    folder = write_gptq_checkpoint(
        tmp_path, small_llama, tokenizer=tokenizer, settings_in=[], **parameters
    )
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".scales")]:
        tensors[name] = tensors[name].to(scales_dtype)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / file_name)
    told = {"quant_method": "gptq", "checkpoint_format": "gptq"}
    check_answers(folder, "reference", {**told, "group_size": parameters.get("group_size", 128)})


AUTO_ROUND = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
    "autoround_version": "0.5.1",
    "block_name_to_quantize": "model.layers",
    "iters": 200,
}


def as_auto_round(folder, **settings):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {**AUTO_ROUND, **settings}
    path.write_text(json.dumps(config))
    (folder / "quantize_config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("packing_format", "checkpoint_format"),
    [
        ("auto_round:auto_gptq", "gptq"),
        ("auto_round:gptq", "gptq"),
        ("auto_round:gptqmodel", "gptq_v2"),
        ("auto_round", "gptq_v2"),
    ],
)
def test_auto_rounds_gptq_packings_store_zero_points_as_their_names_say(
    tmp_path, small_llama, tokenizer, packing_format, checkpoint_format
):
    folder = write_gptq_checkpoint(
        tmp_path,
        small_llama,
        tokenizer=tokenizer,
        sym=False,
        store_g_idx=False,
        checkpoint_format=checkpoint_format,
    )
    as_auto_round(folder, packing_format=packing_format, sym=False)
    told = {"quant_method": "gptq", "checkpoint_format": checkpoint_format, "group_size": 128}
    check_answers(folder, "reference", told)


def test_auto_rounds_awq_packing_is_awqs(tmp_path, small_llama, tokenizer):
    folder = write_awq_checkpoint(tmp_path, small_llama, tokenizer=tokenizer)
    as_auto_round(folder, packing_format="auto_round:auto_awq", sym=False)
    check_answers(folder, "auto", {"quant_method": "awq", "group_size": 128})


def test_auto_rounds_layers_may_have_bits_of_their_own(tmp_path, small_llama, tokenizer):
    """Named in full before named by a pattern, which is looked for anywhere in the name."""
    folder = write_gptq_checkpoint(
        tmp_path,
        small_llama,
        tokenizer=tokenizer,
        dynamic={
            r"-:.*layers\.1\.mlp\.down_proj": {},
            r"+:.*down_proj": {"bits": 2, "group_size": 32},
            r"+:.*mlp": {"bits": 8},
        },
    )
    extra = {
        r"mlp": {"bits": 8, "act_bits": 16},
        "model.layers.0.mlp.down_proj": {"bits": 2, "group_size": 32},
        "model.layers.1.mlp.down_proj": {"bits": 16, "data_type": "int"},
    }
    as_auto_round(folder, packing_format="auto_round:auto_gptq", extra_config=extra)
    check_answers(folder, "reference", {"quant_method": "gptq", "group_size": 128})


@pytest.mark.parametrize("group_size", [7, 96])
def test_groups_of_any_size_are_right(tmp_path, small_llama, tokenizer, group_size):
    folder = write_gptq_checkpoint(
        tmp_path, small_llama, tokenizer=tokenizer, group_size=group_size
    )
    check_answers(folder, "auto")


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 0},
        {"group_size": -7},
        {"bits": 5},
        {"bits": 16},
        {"bits": 10**30},
    ],
)
def test_settings_that_no_tensors_could_have_are_refused(
    tmp_path, small_llama, tokenizer, settings
):
    folder = write_gptq_checkpoint(
        tmp_path, small_llama, tokenizer=tokenizer, settings_in=["config.json"]
    )
    edit_settings(folder, **settings)
    with pytest.raises(UnsupportedQuantizationError, match=str(next(iter(settings.values())))):
        load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("key", "dtype"), [("scales", torch.int32), ("qweight", torch.int64), ("qzeros", torch.int16)]
)
def test_tensors_of_the_wrong_dtype_are_refused(tmp_path, small_llama, tokenizer, key, dtype):
    folder = write_gptq_checkpoint(tmp_path, small_llama, tokenizer=tokenizer)
    name = f"model/layers/0/mlp/down_proj/{key}"
    edit_tensors(folder, **{name: lambda old: old.to(dtype)})
    with pytest.raises(TensorError, match=rf"down_proj\.{key} is I\d+, expected"):
        load(str(folder), device="cpu")


EMPTY_VOCABULARY = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"},
}


UNREADABLE_TOKENIZERS = [
    "",
    "{}",
    "null",
    "[1]",
    "\x00",
    json.dumps(EMPTY_VOCABULARY),
    json.dumps(EMPTY_VOCABULARY | {"model": {"type": "nope"}}),
    json.dumps(EMPTY_VOCABULARY | {"model": None}),
]


@pytest.mark.parametrize("text", UNREADABLE_TOKENIZERS)
def test_a_tokenizer_without_tokens_is_refused(tmp_path, small_llama, tokenizer, text):
    folder = write_gptq_checkpoint(tmp_path, small_llama, tokenizer=tokenizer)
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(str(folder), device="cpu")


def test_experts_are_refused_before_a_weight_is_read(tmp_path, small_llama, tokenizer):
    folder = write_gptq_checkpoint(tmp_path, small_llama, tokenizer=tokenizer)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "qwen3_moe", "num_experts": 128}
    path.write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="qwen3_moe is a mixture of 128 experts"):
        load(str(folder), device="cpu")
