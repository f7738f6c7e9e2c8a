"""Whole checkpoints through `load`, against Transformers with independently dequantised weights."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

from loaders.checkpoint.generation_defaults import read_generation_defaults
from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.errors import (
    CheckpointError,
    NotEnoughMemoryError,
    QuantizationNotFoundError,
    RevisionNotFoundError,
    TensorError,
    UnsafeCheckpointError,
)
from loaders.load import load
from loaders.model.packed_linear import packed_layers
from tests.dequantize import dequantized_model
from tests.models import (
    tiny_llama,
    tiny_qwen2,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)

# Largest difference of any logit, relative to their spread. Measured 2026-11 over all cases: 0.031
# on the fast backends (bfloat16 activations in packed layers), 5e-6 on the reference.
MAX_LOGIT_ERROR = {"reference": 2e-5, "auto": 0.05}

GPTQ_CASES = {
    **{
        f"{bits}-bit group {group}{' act order' if act else ''}": {
            "bits": bits,
            "group_size": group,
            "desc_act": act,
        }
        for bits in (2, 3, 4, 8)
        for group in ((-1, 16, 32, 64, 128) if bits == 4 else (-1, 64, 128))
        for act in (False, True)
    },
    "asymmetric": {"sym": False},
    "asymmetric 3-bit": {"sym": False, "bits": 3},
    "asymmetric 8-bit without groups": {"sym": False, "bits": 8, "group_size": -1},
    "zero points v2": {"checkpoint_format": "gptq_v2", "sym": False},
    "partial last group": {"group_size": 96},
    "partial last group, act order": {"group_size": 96, "desc_act": True},
    "quantised lm_head": {"lm_head": True},
    "siblings with act orders of their own": {"desc_act": True, "siblings_share_order": False},
    "stray zero biases": {"stray_bias": True},
    "no g_idx": {"store_g_idx": False},
    "only config.json": {"settings_in": ["config.json"]},
    "only quantize_config.json": {"settings_in": ["quantize_config.json"]},
    "neither settings file": {"settings_in": [], "desc_act": True},
    "dynamic rules": {
        "dynamic": {
            r"-:.*layers\.0\.mlp\.down_proj": {},
            r"+:.*self_attn\..*": {"bits": 8, "group_size": 64},
        }
    },
    "some modules only": {
        "modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"]]
    },
    "bfloat16": {"dtype": torch.bfloat16},
    "three shards": {"max_shard_bytes": 1_000_000},
}


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def checkpoint(tmp_path, llama, tokenizer):
    return write_gptq_checkpoint(tmp_path / "model", llama, tokenizer=tokenizer)


def logits_of(model):
    ids = torch.randint(0, 500, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids).logits


def logit_error(folder: Path, backend: str, settings=None) -> float:
    expected = logits_of(dequantized_model(folder, settings))
    found = logits_of(load(str(folder), device="cpu", backend=backend).model)
    assert found.dtype == torch.float32
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("case", GPTQ_CASES)
def test_every_gptq_layout_gives_the_logits_of_its_dequantised_weights(
    tmp_path, llama, tokenizer, case, backend
):
    parameters = GPTQ_CASES[case]
    folder = write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, **parameters)
    settings = {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4, "group_size": 128}
    told = None if parameters.get("settings_in") != [] else settings
    assert logit_error(folder, backend, told) < MAX_LOGIT_ERROR[backend]


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("parameters", [{}, {"group_size": 64}, {"group_size": -1}])
def test_awq_gives_the_logits_of_its_dequantised_weights(
    tmp_path, llama, tokenizer, parameters, backend
):
    folder = write_awq_checkpoint(tmp_path, llama, tokenizer=tokenizer, **parameters)
    assert logit_error(folder, backend) < MAX_LOGIT_ERROR[backend]


def test_awq_leaves_modules_to_not_convert_alone(tmp_path, llama, tokenizer):
    skipped = ["layers.1.mlp.down_proj"]
    folder = write_awq_checkpoint(
        tmp_path, llama, tokenizer=tokenizer, modules_to_not_convert=skipped
    )
    loaded = load(str(folder), device="cpu", backend="reference")
    packed = packed_layers(loaded.model)
    assert "fp16" in repr(packed["model.layers.1.mlp.down_proj"]).lower()
    assert "Reference" in repr(packed["model.layers.0.mlp.down_proj"])
    assert logit_error(folder, "auto") < MAX_LOGIT_ERROR["auto"]


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("desc_act", [False, True])
def test_biases_of_packed_layers_are_added(tmp_path, tokenizer, backend, desc_act):
    folder = write_gptq_checkpoint(tmp_path, tiny_qwen2(), tokenizer=tokenizer, desc_act=desc_act)
    assert logit_error(folder, backend) < MAX_LOGIT_ERROR[backend]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_plain_checkpoints_load_without_losing_precision(tmp_path, llama, tokenizer, dtype):
    folder = write_plain_checkpoint(tmp_path, llama, dtype=dtype, tokenizer=tokenizer)
    loaded = load(str(folder), device="cpu")
    assert loaded.quantization is None
    assert logit_error(folder, "auto") < MAX_LOGIT_ERROR["reference"]


def test_a_tied_head_is_packed_from_the_embedding(tmp_path, tokenizer):
    model = tiny_llama(tie_word_embeddings=True)
    folder = write_gptq_checkpoint(tmp_path, model, tokenizer=tokenizer)
    assert logit_error(folder, "auto") < MAX_LOGIT_ERROR["auto"]


def test_what_is_loaded_says_where_it_came_from_and_how_it_runs(tiny_repo):
    branch = "gptq-8bit--1g-actorder_True"
    loaded = load(
        f"{tiny_repo.gptq_repo}:{branch}",
        cache_dir=tiny_repo.cache_dir,
        device="cpu",
        local_files_only=True,
    )
    provenance = loaded.provenance
    assert (provenance.repo, provenance.revision) == (tiny_repo.gptq_repo, branch)
    assert provenance.commit == provenance.folder.name
    assert (provenance.backend, provenance.dtype, provenance.device) == (
        "int8pack",
        "float32",
        "cpu",
    )
    assert str(loaded.quantization) == "gptq 8-bit one group act-order"
    assert loaded.generation.stop_token_ids == {1, 3}
    assert loaded.generation.temperature is None
    assert loaded.tokenizer("a").input_ids[0] == 0


def test_the_choice_of_backend_is_logged_with_its_reason(checkpoint):
    with structlog.testing.capture_logs() as logs:
        load(str(checkpoint), device="cpu")
    chosen = [entry for entry in logs if entry["event"] == "kernel_backend"]
    assert [(entry["backend"], entry["layers"]) for entry in chosen] == [("int4pack", 14)]
    assert chosen[0]["reason"] == "fastest for this layer"


def test_a_missing_revision_names_those_there_are(tiny_repo):
    with pytest.raises(RevisionNotFoundError, match=r"'nope'.*gptq-4bit-32g-actorder_True, .*main"):
        load(f"{tiny_repo.gptq_repo}:nope", cache_dir=tiny_repo.cache_dir, local_files_only=True)


def test_a_folder_is_no_clone_and_has_no_revisions(checkpoint):
    with pytest.raises(RevisionNotFoundError, match="plain folder"):
        load(f"{checkpoint}:main")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tensors_that_fit_neither_settings_nor_each_other_name_found_and_expected(checkpoint):
    shard = checkpoint / "model.safetensors"
    tensors = load_file(shard)
    name = "model.layers.0.mlp.down_proj.qzeros"
    tensors[name] = tensors[name].repeat(2, 1)
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(TensorError, match=r"qzeros is \[22, 64\], expected \[11, 64\]"):
        load(str(checkpoint), device="cpu")


def test_settings_that_the_tensors_contradict_give_way_to_them(checkpoint):
    for name in ("quantize_config.json", "config.json"):
        settings = json.loads((checkpoint / name).read_text())
        (settings.get("quantization_config") or settings)["group_size"] = 64
        (checkpoint / name).write_text(json.dumps(settings))
    found = load(str(checkpoint), device="cpu").quantization
    assert found is not None
    assert found.base.group_size == 128
    assert "group size 64" in found.remarks[0]


def test_a_dense_tensor_of_the_wrong_shape_is_refused(checkpoint):
    edit_json(checkpoint / "config.json", vocab_size=600)
    with pytest.raises(TensorError, match=r"embed_tokens|lm_head"):
        load(str(checkpoint), device="cpu")


def test_packed_layers_that_the_model_lacks_are_named(checkpoint):
    file = checkpoint / "model.safetensors"
    own = {k: v for k, v in load_file(file).items() if "layers.1.mlp.up_proj" in k}
    strange = {k.replace("mlp.up_proj", "mlp.side_proj"): v for k, v in own.items()}
    save_file(load_file(file) | strange, file, metadata={"format": "pt"})
    with pytest.raises(TensorError, match=r"layers\.1\.mlp\.side_proj"):
        load(str(checkpoint), device="cpu")


def test_tensors_that_the_checkpoint_lacks_are_named(checkpoint):
    edit_json(checkpoint / "config.json", num_hidden_layers=3)
    with pytest.raises(TensorError, match=r"lacks .*layers\.2\."):
        load(str(checkpoint), device="cpu")


def test_a_truncated_shard_is_refused_before_anything_is_built(checkpoint):
    shard = checkpoint / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        load(str(checkpoint), device="cpu")


def test_damaged_scales_are_refused_by_the_name_of_the_tensor(tmp_path, llama, tokenizer):
    folder = write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.scales"][0, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TensorError, match=r"layers\.1\.mlp\.up_proj\.scales holds NaN"):
        load(str(folder), device="cpu")


def test_a_pickle_beside_nothing_else_is_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match="only safetensors"):
        load(str(checkpoint), device="cpu")


def test_settings_without_packed_weights_are_refused(tmp_path, llama, tokenizer):
    folder = write_plain_checkpoint(tmp_path, llama, tokenizer=tokenizer)
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    with pytest.raises(QuantizationNotFoundError):
        load(str(folder), device="cpu")


def test_weights_that_do_not_fit_tell_needed_and_free(checkpoint, monkeypatch):
    monkeypatch.setattr("loaders.memory.free.free_device_bytes", lambda device: 1_000_000)
    with pytest.raises(NotEnoughMemoryError, match=r"need 0\.00 GB on cpu, 0\.00 GB are free"):
        load(str(checkpoint), device="cpu")


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (checkpoint / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(str(checkpoint), device="cpu")


def test_code_in_a_checkpoint_is_never_run(checkpoint, tmp_path):
    marker = tmp_path / "ran"
    (checkpoint / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    auto_map = {
        "AutoConfig": "modeling_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"],
    }
    edit_json(checkpoint / "config.json", auto_map=auto_map, trust_remote_code=True)
    edit_json(checkpoint / "tokenizer_config.json", auto_map=auto_map)
    load(str(checkpoint), device="cpu")
    assert not marker.exists()


def test_a_copy_of_a_folder_loads_the_same(checkpoint, tmp_path):
    """Nothing outside the folder is looked at."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    first, second = (load(str(f), device="cpu") for f in (checkpoint, tmp_path / "copy"))
    assert torch.equal(logits_of(first.model), logits_of(second.model))


def test_a_tokenizer_is_read_as_it_was_saved_whatever_class_its_config_names(checkpoint):
    """Llama's class would drop the normaliser that CodeLlama 70B's ids depend on."""
    path = checkpoint / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["normalizer"] = {"type": "Prepend", "prepend": "Z"}
    saved["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    path.write_text(json.dumps(saved))
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer("abc def ghi jkl").input_ids
    assert tokenizer.decode(ids[1:]) == "Zabc def ghi jkl"


def test_weights_under_a_name_of_their_own_are_loaded(checkpoint, tmp_path):
    """As the first quantised repositories have them."""
    first = load(str(checkpoint), device="cpu")
    (checkpoint / "model.safetensors").rename(checkpoint / "gptq_model-4bit-128g.safetensors")
    renamed = load(str(checkpoint), device="cpu")
    assert torch.equal(logits_of(first.model), logits_of(renamed.model))


def test_the_files_that_were_checked_are_the_files_that_are_read(tmp_path, llama, tokenizer):
    folder = write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, max_shard_bytes=1_000_000)
    first = load(str(folder), device="cpu")
    (folder / "left-over.safetensors").write_bytes(b"left over from another download")
    (folder / "pytorch_model.bin").write_bytes(b"left over, and a pickle")
    again = load(str(folder), device="cpu")
    assert torch.equal(logits_of(first.model), logits_of(again.model))


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"hidden_act": "nope"}, {"rms_norm_eps": "x"}]
)
def test_settings_that_make_no_model_are_an_error_of_the_checkpoint(checkpoint, change):
    edit_json(checkpoint / "config.json", **change)
    with pytest.raises(CheckpointError):
        load(str(checkpoint), device="cpu")


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [1, 40_000, "x", -1]}, {1}),
        ({"eos_token_id": None}, {7}),
        ({}, {7}),
        ({"eos_token_id": True}, set()),
    ],
)
def test_end_ids_are_those_that_the_vocabulary_has(tmp_path, llama, generation, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = copy.deepcopy(llama.config)
    config.eos_token_id = 7
    assert read_generation_defaults(tmp_path, config).stop_token_ids == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('{"temperature": 0.2, "top_p": 0.9}', (0.2, 0.9)),
        ('{"temperature": NaN, "top_p": 0}', (None, None)),
        ('{"temperature": -1, "top_p": 1.5}', (None, None)),
        ('{"temperature": "warm", "top_p": true}', (None, None)),
    ],
)
def test_recommendations_that_no_request_could_make_are_left_out(
    tmp_path, llama, settings, expected
):
    (tmp_path / "generation_config.json").write_text(settings)
    found = read_generation_defaults(tmp_path, llama.config)
    assert (found.temperature, found.top_p) == expected
