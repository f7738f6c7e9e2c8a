"""Whole GGUF models through `load`, against stock Transformers with the weights they hold."""

import pytest
import torch
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

from loaders.errors import CheckpointError, TensorError, UnsupportedModelError
from loaders.load import load
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
    assert_same(
        loaded(path, tmp_path, backend).model, as_stored(llama, CASES[case]), backend
    )


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_format_is_read(tmp_path, llama, tokenizer, version):
    path = write(tmp_path / "m.gguf", llama, MIXES["Q4_K_M"], tokenizer, version=version)
    assert_same(
        loaded(path, tmp_path).model, as_stored(llama, MIXES["Q4_K_M"]), "reference"
    )
