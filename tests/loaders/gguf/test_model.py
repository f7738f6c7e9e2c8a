"""Whole GGUF models through `load`, against stock Transformers with the weights they hold."""

import contextlib
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from loaders.demo.repository import commit_branch
from loaders.errors import (
    CheckpointError,
    LoadError,
    TensorError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from loaders.gguf.files import find_file
from loaders.load import load
from loaders.memory.release import MappedFiles
from loaders.model.opened import open_gguf
from loaders.model.self_test.reference_weights import StoredWeights
from tests import models
from tests.gguf_writer import (
    BLOCK_TYPES,
    as_stored,
    cut_file,
    mixed,
    model_metadata,
    model_tensors,
    write_gguf,
    write_set,
)

# Largest difference of any logit, relative to their spread. Measured 2026-11 over all cases: 0.028
# on the fast backends, 6e-6 on the reference.
MAX_LOGIT_ERROR = {"reference": 2e-5, "auto": 0.06}

MIXES = {
    "Q2_K": mixed("Q2_K", "Q4_K", ["attn_v", "ffn_down"]),
    "Q3_K_M": mixed("Q3_K", "Q5_K", ["attn_v", "ffn_down"]),
    "Q4_K_M": mixed("Q4_K", "Q6_K", ["attn_v", "ffn_down"]),
    "Q5_K_M": mixed("Q5_K", "Q6_K", ["attn_v", "ffn_down"]),
    "Q4_0 and Q8_0": mixed("Q4_0", "Q8_0", ["attn_k", "ffn_gate"], head="Q8_0"),
}
CASES = {name: (lambda _, name=name: name) for name in ("F32", "F16", "BF16", *BLOCK_TYPES)} | MIXES


def tiny(**settings):
    """Rows of 256 and 512, so that every type's blocks fit; four heads, two of keys."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    return models.tiny_llama(dtype=torch.float32, **{**shape, **settings})


@pytest.fixture(scope="module")
def llama():
    return tiny()


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer()


def logits_of(model):
    ids = torch.randint(0, 500, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids).logits


def greedy(model, count=12):
    ids = torch.tensor([[5, 17, 300, 44, 8]])
    with torch.inference_mode():
        return model.generate(ids, max_new_tokens=count, do_sample=False).tolist()


def assert_same(found, expected, backend):
    error = (logits_of(found) - logits_of(expected)).abs().max() / logits_of(expected).std()
    assert float(error) < MAX_LOGIT_ERROR[backend]
    if backend == "reference":
        assert greedy(found) == greedy(expected)


def write(path, model, type_of, tokenizer, **options):
    metadata = {**model_metadata(model, tokenizer), **options.pop("metadata", {})}
    return write_gguf(path, metadata, model_tensors(model, type_of), **options)


def loaded(path, tmp_path, backend="reference"):
    return load(str(path), device="cpu", backend=backend, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_every_type_and_mix_gives_the_logits_of_the_weights_it_holds(
    tmp_path, llama, tokenizer, case, backend
):
    path = write(tmp_path / "m.gguf", llama, CASES[case], tokenizer)
    assert_same(loaded(path, tmp_path, backend).model, as_stored(llama, CASES[case]), backend)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_format_is_read(tmp_path, llama, tokenizer, version):
    path = write(tmp_path / "m.gguf", llama, MIXES["Q4_K_M"], tokenizer, version=version)
    assert_same(loaded(path, tmp_path).model, as_stored(llama, MIXES["Q4_K_M"]), "reference")


def test_a_file_cut_in_pieces_is_read_as_if_joined(tmp_path, llama, tokenizer):
    """One cut goes through the header, one through a tensor, at odd bytes."""
    path = write(tmp_path / "m.gguf", llama, MIXES["Q4_K_M"], tokenizer)
    size = path.stat().st_size
    first, *_ = cut_file(path, 4001, size // 2 + 1)
    expected = as_stored(llama, MIXES["Q4_K_M"])
    assert_same(loaded(first, tmp_path).model, expected, "reference")
    assert_same(loaded(tmp_path, tmp_path).model, expected, "reference")
    assert_same(loaded(tmp_path / "m.gguf-split-b", tmp_path).model, expected, "reference")


def test_a_set_of_files_is_one_model(tmp_path, llama, tokenizer):
    metadata = model_metadata(llama, tokenizer)
    tensors = model_tensors(llama, MIXES["Q5_K_M"])
    first, *_ = write_set(tmp_path / "set", "m", metadata, tensors, 3)
    expected = as_stored(llama, MIXES["Q5_K_M"])
    assert_same(loaded(first, tmp_path).model, expected, "reference")
    assert_same(loaded(tmp_path / "set", tmp_path).model, expected, "reference")


def test_parts_that_are_missing_or_of_another_set_are_named(tmp_path, llama, tokenizer):
    metadata, tensors = model_metadata(llama, tokenizer), model_tensors(llama, CASES["Q8_0"])
    paths = write_set(tmp_path / "set", "m", metadata, tensors, 3)
    paths[1].rename(tmp_path / "aside")
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf is missing"):
        loaded(paths[0], tmp_path)
    (tmp_path / "aside").rename(paths[1])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"is in m-00002.* and in m-00003|not of one set"):
        loaded(paths[0], tmp_path)
    whole = write(tmp_path / "cut" / "w.gguf", llama, CASES["Q8_0"], tokenizer)
    _, second, third = cut_file(whole, 5000, 90_000)
    third.unlink()
    with pytest.raises(CheckpointError, match=r"w\.gguf-split-a is truncated: 90000 bytes"):
        loaded(tmp_path / "cut", tmp_path)
    third.touch()
    second.unlink()
    with pytest.raises(CheckpointError, match=r"w\.gguf-split-b, a part of w\.gguf, is missing"):
        loaded(tmp_path / "cut", tmp_path)


def test_a_folder_of_several_models_wants_one_named(tmp_path, llama, tokenizer):
    for name in ("one", "two"):
        write(tmp_path / f"{name}.gguf", llama, CASES["Q8_0"], tokenizer)
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF models: one\.gguf, two\.gguf; name"):
        loaded(tmp_path, tmp_path)
    assert loaded(tmp_path / "two.gguf", tmp_path).provenance.repo == "two"


_SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": models.VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
ARCHITECTURES = {
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**_SMALL, sliding_window=16)),
    "qwen2 with biases": lambda: models.tiny_qwen2(
        hidden_size=256, intermediate_size=512, num_attention_heads=4
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SMALL, head_dim=128)),
    "starcoder2": lambda: Starcoder2ForCausalLM(Starcoder2Config(**_SMALL)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SMALL, sliding_window=16)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_SMALL, head_dim=128)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_SMALL, head_dim=128, query_pre_attn_scalar=128, sliding_window=16)
    ),
    "llama, tied": lambda: tiny(tie_word_embeddings=True),
    "llama, all heads alike": lambda: tiny(num_key_value_heads=4),
    "llama, linear RoPE": lambda: tiny(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
    ),
    "llama, yarn": lambda: tiny(
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 8.0,
            "original_max_position_embeddings": 256,
        }
    ),
}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_gives_the_logits_of_its_own_transformers_class(tmp_path, tokenizer, family):
    made = ARCHITECTURES[family]()
    model = models._filled(made, 0, torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.bias"):
            parameter.data.normal_(0.0, 0.1)
    path = write(tmp_path / "m.gguf", model, MIXES["Q4_K_M"], tokenizer)
    found = loaded(path, tmp_path).model
    assert type(found) is type(made)
    assert_same(found, as_stored(model, MIXES["Q4_K_M"]), "reference")


def test_factors_of_single_frequencies_are_those_of_llama_3(tmp_path, tokenizer):
    """GGUF keeps Llama 3.1's scaling as one factor a frequency, in a tensor."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    model = tiny(rope_parameters=rope)
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    tensors = model_tensors(model, CASES["Q8_0"]) | {"rope_freqs.weight": ("F32", factors)}
    path = write_gguf(tmp_path / "m.gguf", model_metadata(model, tokenizer), tensors)
    assert_same(loaded(path, tmp_path).model, as_stored(model, CASES["Q8_0"]), "reference")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"general.architecture": "mamba"}, r"architecture 'mamba'; read are llama, qwen2"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "su", "llama.rope.scaling.factor": 2.0}, "scales RoPE by"),
        ({"llama.rope.dimension_count": 32}, "rotates 32 of a head's 64 values"),
        ({"llama.attention.key_length": 64, "llama.attention.value_length": 32}, "be alike"),
    ],
)
def test_models_that_are_not_served_are_refused_by_name(
    tmp_path, llama, tokenizer, change, problem
):
    path = write(tmp_path / "m.gguf", llama, CASES["Q8_0"], tokenizer, metadata=change)
    with pytest.raises(UnsupportedModelError, match=problem):
        loaded(path, tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"llama.block_count": 3}, "says 3 layers, the file holds tensors of 2"),
        ({"llama.block_count": 2_000_000_000}, r"block_count is 2000000000, expected a whole"),
        ({"llama.embedding_length": 0}, r"embedding_length is 0, expected"),
        ({"llama.embedding_length": 512}, r"token_embd\.weight is \[512, 256\], expected rows of"),
        ({"llama.attention.head_count": 6}, "256 and 6 heads give no even head size"),
        ({"llama.attention.head_count_kv": 3}, "4 heads and 3 key-value heads"),
        ({"llama.attention.head_count_kv": 1}, r"blk\.0\.attn_k\.weight is \[128, 256\], expected"),
        ({"llama.feed_forward_length": 1024}, r"ffn_\w+\.weight is \[.*\], expected"),
        ({"llama.rope.freq_base": float("nan")}, "expected a positive number"),
        ({"llama.context_length": "long"}, r"context_length is long, expected a whole number"),
    ],
)
def test_metadata_that_contradicts_the_tensors_is_refused(
    tmp_path, llama, tokenizer, change, problem
):
    path = write(tmp_path / "m.gguf", llama, CASES["Q8_0"], tokenizer, metadata=change)
    with pytest.raises(CheckpointError, match=problem):
        loaded(path, tmp_path)


def test_tensors_that_are_missing_strange_or_quantised_norms_are_named(tmp_path, llama, tokenizer):
    metadata, tensors = model_metadata(llama, tokenizer), model_tensors(llama, CASES["Q8_0"])
    lacking = {name: value for name, value in tensors.items() if name != "blk.1.attn_k.weight"}
    with pytest.raises(TensorError, match=r"nothing for 1 .*layers\.1\.self_attn\.k_proj"):
        loaded(write_gguf(tmp_path / "1.gguf", metadata, lacking), tmp_path)
    strange = {**tensors, "blk.0.ssm_a.weight": tensors["blk.0.attn_k.weight"]}
    with pytest.raises(CheckpointError, match=r"blk\.0\.ssm_a\.weight, which a llama model has no"):
        loaded(write_gguf(tmp_path / "2.gguf", metadata, strange), tmp_path)
    norm = tensors["output_norm.weight"][1]
    rounded = {**tensors, "output_norm.weight": ("Q8_0", norm)}
    with pytest.raises(TensorError, match=r"output_norm\.weight is stored as Q8_0, expected F32"):
        loaded(write_gguf(tmp_path / "3.gguf", metadata, rounded), tmp_path)


def test_the_small_files_are_written_once_and_read_by_a_process_without_weights(
    tmp_path, llama, tokenizer
):
    path = write(tmp_path / "m.gguf", llama, CASES["Q8_0"], tokenizer)
    (tmp_path / "README.md").write_text("# A card\n")
    first = loaded(path, tmp_path)
    folder = first.provenance.folder
    assert {"tokenizer.json", "tokenizer_config.json", "config.json", "README.md"} <= {
        file.name for file in folder.iterdir()
    }
    assert first.generation.stop_token_ids == {1}
    assert first.tokenizer.chat_template == models.CHATML
    text = "def f(x):\n    return x + 1  # é 日本 🎉 12345"
    assert first.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    assert loaded(path, tmp_path).provenance.folder == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    assert not list(folder.parent.glob(".unfinished-*"))


def test_the_reference_multiplies_blocks_where_they_lie_in_the_file(tmp_path, llama, tokenizer):
    path = write(tmp_path / "m.gguf", llama, CASES["Q8_0"], tokenizer)
    model = loaded(path, tmp_path).model
    blocks = model.model.layers[0].self_attn.q_proj.kernel._packed.stored["blocks"]
    ranges = MappedFiles.find([path]).ranges
    assert any(low <= blocks.data_ptr() < high for low, high in ranges)


@pytest.mark.parametrize("name", ["../m.gguf", "/etc/m.gguf", "sub/../../m.gguf", "m.safetensors"])
def test_no_file_outside_the_folder_is_opened(tmp_path, name):
    with pytest.raises(UnsafeCheckpointError, match="no GGUF file inside"):
        find_file(tmp_path, name)


def test_a_cache_that_cannot_be_written_is_said_to_be_so(tmp_path, llama, tokenizer):
    path = write(tmp_path / "m.gguf", llama, CASES["Q8_0"], tokenizer)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"cannot be written to .*TETRAD_CACHE_DIR"):
        loaded(path, tmp_path)
    assert not list(tmp_path.glob("**/.unfinished-*"))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory, tokenizer):
    model = tiny(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=512)
    folder = tmp_path_factory.mktemp("small")
    path = write(folder / "m.gguf", model, CASES["Q8_0"], tokenizer)
    data = path.read_bytes()
    places = [match.start() for match in re.finditer(rb"llama\.|general\.|tokenizer\.|blk\.", data)]
    return data, places


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_opened_or_refused_and_nothing_else(data, small_file, tmp_path_factory):
    """Bytes are changed near settings and names of tensors, where they mean most."""
    content, places = bytearray(small_file[0]), small_file[1]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 60))
        content[at] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "m.gguf").write_bytes(content)
    with contextlib.suppress(LoadError):
        open_gguf(folder / "m.gguf", folder / "cache")
    assert {path.name for path in folder.iterdir()} <= {"m.gguf", "cache"}


def test_one_tensor_is_read_again_without_the_embedding(tmp_path, llama, tokenizer, monkeypatch):
    path = tmp_path / "m.gguf"
    write(path, llama, lambda name: "Q6_K" if "embd" in name else "Q4_K", tokenizer)
    source = open_gguf(path, tmp_path / "cache")
    every = source.read_weights()
    assert every.keys() == source.tensors.keys()
    embedding = "model.embed_tokens.weight"
    torch.testing.assert_close(source.read_weight(embedding), every[embedding])

    def widen(*_):
        raise AssertionError("the embedding was widened again")

    model = loaded(path, tmp_path).model
    monkeypatch.setattr("loaders.gguf.model._widened", widen)
    assert StoredWeights(source, model)("model.layers.0.self_attn.q_proj").shape == (256, 256)
    for name in every.keys() - {embedding}:
        torch.testing.assert_close(source.read_weight(name), every[name])
    assert source.read_weight("model.layers.9.mlp.up_proj.blocks") is None
    assert source.read_weight("model.layers.0.mlp.up_proj.weight") is None


def test_files_of_one_commit_are_remembered_apart(tmp_path, llama, tokenizer):
    """Both run on the same kernel: what one said first must not be held against the other."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("Q4_0", "Q4_1"):
        write(folder / f"m.{name}.gguf", llama, CASES[name], tokenizer)
    commit_branch(tmp_path, "someone/M-GGUF", "main", folder)
    options = {"cache_dir": tmp_path, "local_files_only": True, "device": "cpu", "self_test": True}
    for name in ("Q4_0", "Q4_1", "Q4_0"):
        model = load(f"someone/M-GGUF:{name}", **options)
        assert model.self_test.passed
        assert model.provenance.file == f"m.{name}.gguf"
        assert str(model.spec) == f"someone/M-GGUF/m.{name}.gguf"
