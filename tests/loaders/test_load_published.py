"""Checkpoints as people published them: right although names, ids or spellings are unusual.

Each answers as a stock model in float32 does that has its weights, dequantised independently.
"""

from __future__ import annotations

import json
import shutil

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPTBigCodeConfig,
    Phi3Config,
    Phi3ForCausalLM,
)

from loaders.errors import CheckpointError
from loaders.load import load
from loaders.memory.device import weight_bytes
from tests.dequantize import dequantized_model
from tests.models import (
    tiny_llama,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
    write_plain_checkpoint,
)
from tests.sentencepiece_models import train_sentencepiece

MAX_LOGIT_ERROR = {"reference": 2e-5, "auto": 0.05}  # relative to the logits' spread
PROMPT = torch.randint(0, 500, (1, 33), generator=torch.Generator().manual_seed(0))
GPTQ = "gptq_model-4bit-128g"


@pytest.fixture(scope="module")
def llama():
    return tiny_llama(hidden_size=256, intermediate_size=384)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def edit_json(path, **changes):
    """Change keys of a JSON file; None takes one away."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def check_answers(folder, expected, backend="auto"):
    loaded = load(str(folder), device="cpu", backend=backend)
    with torch.inference_mode():
        right, ours = (model(PROMPT).logits[0] for model in (expected, loaded.model))
    assert float((ours - right).abs().max()) < MAX_LOGIT_ERROR[backend] * right.std()
    return loaded


def rename_shards(folder, base, *, keep_index=True):
    """Call shards and index as AutoGPTQ does."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {
        tensor: name.replace("model-", f"{base}-", 1)
        for tensor, name in index["weight_map"].items()
    }
    for shard in folder.glob("model-*.safetensors"):
        shard.rename(folder / shard.name.replace("model-", f"{base}-", 1))
    path.unlink()
    if keep_index:
        (folder / f"{base}.safetensors.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("index", ["whole", "without metadata", "none"])
def test_autogptqs_shards_answer_as_their_dequantised_weights(tmp_path, llama, tokenizer, index):
    write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, max_shard_bytes=500_000)
    expected = dequantized_model(tmp_path)
    rename_shards(tmp_path, GPTQ, keep_index=index != "none")
    if index == "without metadata":
        edit_json(tmp_path / f"{GPTQ}.safetensors.index.json", metadata=None)
    loaded = load(str(tmp_path), device="cpu", self_test=True)
    assert loaded.self_test is not None
    check_answers(tmp_path, expected)


def test_a_shard_that_is_missing_without_an_index_is_named(tmp_path, llama, tokenizer):
    write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer, max_shard_bytes=500_000)
    rename_shards(tmp_path, GPTQ, keep_index=False)
    (lost,) = tmp_path.glob(f"{GPTQ}-00002-of-*.safetensors")
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.stem):
        load(str(tmp_path), device="cpu")


def named_in(path):
    """Name a folder's weights after it, in either of its settings files."""
    own = {"model_file_base_name": path.parent.name}
    if path.name != "config.json":
        return own
    return {"quantization_config": {**json.loads(path.read_text())["quantization_config"], **own}}


@pytest.mark.parametrize("named", [0, 1])
def test_of_two_quantisations_in_a_folder_the_named_one_answers(tmp_path, llama, tokenizer, named):
    names = [GPTQ, "gptq_model-4bit-32g"]
    for name, group_size in zip(names, (128, 32), strict=True):
        folder = write_gptq_checkpoint(
            tmp_path / name, llama, group_size=group_size, tokenizer=tokenizer
        )
    folder, other = (tmp_path / name for name in (names[named], names[1 - named]))
    expected = dequantized_model(folder)
    (folder / "model.safetensors").rename(folder / f"{folder.name}.safetensors")
    shutil.copy(other / "model.safetensors", folder / f"{other.name}.safetensors")
    for settings in ("quantize_config.json", "config.json"):
        edit_json(folder / settings, **named_in(folder / settings))
    check_answers(folder, expected)


@pytest.mark.parametrize("name", ["model", GPTQ])
def test_an_index_left_over_from_the_original_is_not_followed(tmp_path, llama, tokenizer, name):
    write_awq_checkpoint(tmp_path, llama, tokenizer=tokenizer)
    expected = dequantized_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / f"{name}.safetensors")
    weight_map = {n: "model-00001-of-00002.safetensors" for n, _ in llama.named_parameters()}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check_answers(tmp_path, expected)


def test_model_safetensors_is_opened_before_shards_of_another_checkpoint(
    tmp_path, llama, tokenizer
):
    write_gptq_checkpoint(tmp_path, llama, tokenizer=tokenizer)
    expected = dequantized_model(tmp_path)
    other = write_plain_checkpoint(tmp_path / "other", llama, max_shard_bytes=500_000)
    for path in other.glob("model*safetensors*"):
        shutil.copy(path, tmp_path)
    check_answers(tmp_path, expected)


@pytest.mark.parametrize("pad", [-1, 512, 10**9])
@pytest.mark.parametrize("write", [write_gptq_checkpoint, write_plain_checkpoint])
def test_a_pad_id_beyond_the_vocabulary_needs_no_row(tmp_path, llama, tokenizer, pad, write):
    write(tmp_path, llama, tokenizer=tokenizer)
    expected = dequantized_model(tmp_path)
    edit_json(tmp_path / "config.json", pad_token_id=pad)
    check_answers(tmp_path, expected)


def pack_head(folder, packed):
    """Pack the head of a checkpoint as its last layer's `down_proj` is packed in another."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    start = "model.layers.0.self_attn.q_proj."
    head = {k: v for k, v in load_file(packed / "model.safetensors").items() if k.startswith(start)}
    tensors |= {name.replace(start, "lm_head."): tensor for name, tensor in head.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


HEADS = ("gptq", "gptq 8-bit", "awq", "auto-round", "compressed-tensors")


@pytest.fixture(scope="module")
def square_llama():
    """As many tokens as inputs, so that a layer of one model can be the head of another."""
    return tiny_llama(hidden_size=512, intermediate_size=384, num_hidden_layers=1)


@pytest.mark.parametrize("layout", HEADS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_packed_head_is_used_where_the_model_is_said_to_be_tied(
    tmp_path, square_llama, tokenizer, layout, backend
):
    if layout in ("gptq", "gptq 8-bit", "auto-round"):
        bits = 8 if layout == "gptq 8-bit" else 4
        write_gptq_checkpoint(
            tmp_path, square_llama, bits=bits, lm_head=True, tokenizer=tokenizer,
            settings_in=("config.json",),
        )  # fmt: skip
    else:
        write = write_awq_checkpoint if layout == "awq" else write_compressed_checkpoint
        for folder, seed in ((tmp_path, 0), (tmp_path / "head", 1)):
            model = tiny_llama(
                hidden_size=512, intermediate_size=384, num_hidden_layers=1, seed=seed
            )
            write(folder, model, tokenizer=tokenizer)
        pack_head(tmp_path, tmp_path / "head")
    config = json.loads((tmp_path / "config.json").read_text())
    settings = config["quantization_config"]
    if layout == "compressed-tensors":
        settings["ignore"] = []
    expected_settings = dict(settings)
    if layout == "auto-round":
        kept = {key: settings[key] for key in ("bits", "group_size", "sym")}
        packing = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
        settings = {**kept, **packing, "data_type": "int"}
    edit_json(tmp_path / "config.json", quantization_config=settings)
    expected = dequantized_model(tmp_path, expected_settings)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    with structlog.testing.capture_logs() as logs:
        loaded = check_answers(tmp_path, expected, backend)
    assert [entry["name"] for entry in logs if entry["event"] == "head_untied"] == ["lm_head"]
    head = loaded.model.get_output_embeddings()
    assert head is not loaded.model.get_input_embeddings()
    with_head = weight_bytes(loaded.tensors, loaded.quantization, "cpu")
    without = {n: t for n, t in loaded.tensors.items() if not n.startswith("lm_head")}
    assert with_head != weight_bytes(without, loaded.quantization, "cpu")


def test_a_tokenizer_of_sentencepiece_alone_loads(tmp_path, tokenizer):
    """As the first conversions of Llama have it, with a class that Transformers never had."""
    model = tiny_llama(hidden_size=256, intermediate_size=384, vocab_size=600)
    write_gptq_checkpoint(tmp_path, model)
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    config = {"tokenizer_class": "LLaMATokenizer", "bos_token": "", "eos_token": ""}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load(str(tmp_path), device="cpu", self_test=True)
    ids = loaded.tokenizer("def f(x):\n    return x").input_ids
    assert ids[0] == loaded.tokenizer.bos_token_id
    assert loaded.tokenizer.decode(ids[1:]) == "def f(x):\n    return x"


def random_model(config):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).half().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("multi_query", [True, False])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_gpt_bigcode_answers_as_its_dequantised_weights(tmp_path, tokenizer, multi_query, backend):
    sizes = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 512}
    config = GPTBigCodeConfig(
        vocab_size=512, multi_query=multi_query, bos_token_id=0, eos_token_id=1, **sizes,
        tie_word_embeddings=False,
    )  # fmt: skip
    write_gptq_checkpoint(tmp_path, random_model(config), group_size=64, tokenizer=tokenizer)
    check_answers(tmp_path, dequantized_model(tmp_path), backend)


@pytest.mark.parametrize("name", ["su", "longrope"])
def test_phi3s_first_name_of_longrope_turns_as_longrope(tmp_path, tokenizer, name):
    config = Phi3Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096,
        original_max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    write_plain_checkpoint(tmp_path, random_model(config), tokenizer=tokenizer)
    lists = {
        "short_factor": [1.0 + 0.05 * i for i in range(16)],
        "long_factor": [2.0 + 0.1 * i for i in range(16)],
    }
    changes = {"rope_parameters": None, "rope_theta": 10_000.0}
    rope = {"type": "longrope", **lists}
    edit_json(tmp_path / "config.json", **changes, rope_scaling=rope)
    expected = dequantized_model(tmp_path)
    assert isinstance(expected, Phi3ForCausalLM)
    edit_json(tmp_path / "config.json", rope_scaling={**rope, "type": name})
    check_answers(tmp_path, expected)
