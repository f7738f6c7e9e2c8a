"""Counts in a configuration are held against the tensors before anything is made of them."""

from pathlib import Path

import pytest

from loaders.checkpoint.claims import check_claims, claimed_sizes
from loaders.checkpoint.config import make_model_config
from loaders.checkpoint.files import TensorInfo
from loaders.errors import CheckpointError, TensorError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 32_000,
}
SHAPES = {
    "model.embed_tokens.weight": ("F16", (32_000, 64)),
    "model.layers.0.mlp.up_proj.weight": ("F16", (128, 64)),
    "model.layers.1.mlp.up_proj.qweight": ("I32", (8, 128)),
}


def tensors(shapes=SHAPES):
    return {
        name: TensorInfo(name, dtype, shape, Path("model.safetensors"))
        for name, (dtype, shape) in shapes.items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 1 << 24}, r"vocab_size 16777216.*embed_tokens\.weight, \[32000, 64\]"),
        ({"hidden_size": 1 << 20}, r"hidden_size 1048576.*\[32000, 64\]"),
        ({"intermediate_size": 1 << 22}, r"intermediate_size 4194304.*\[32000, 64\]"),
        ({"num_hidden_layers": 4096}, r"num_hidden_layers 4096.*lacks model\.layers\.2\..*2 lay"),
        ({"text_config": {"num_hidden_layers": 5}}, r"num_hidden_layers 5.*have 2 layers"),
    ],
)
def test_what_no_tensor_bears_out_is_refused_with_both_numbers(changes, message):
    with pytest.raises(TensorError, match=message):
        check_claims({**LLAMA, **changes}, tensors())


def test_numbers_under_an_architectures_own_names_are_held_to_the_same(tmp_path):
    shapes = {"transformer.wte.weight": ("F16", (500, 64)), "h.0.ln_1.weight": ("F16", (64,))}
    with pytest.raises(TensorError, match=r"num_hidden_layers 48.*lacks h\.1\."):
        check_claims({"model_type": "gpt2", "n_layer": 48}, tensors(shapes))
    assert claimed_sizes({"model_type": "gpt2", "n_embd": 64})["hidden_size"] == 64


def test_a_model_deeper_than_any_is_refused_even_where_it_is_there():
    shapes = {f"model.layers.{i}.norm.weight": ("F16", (32_000,)) for i in range(513)}
    check_claims({**LLAMA, "num_hidden_layers": 512}, tensors(shapes))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers 513.*at most 512 layers"):
        check_claims({**LLAMA, "num_hidden_layers": 513}, tensors(shapes))


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, SHAPES),
        ({"num_hidden_layers": 1}, SHAPES),  # layers beyond are left over
        # A packed embedding has an eighth of the rows.
        ({}, {**SHAPES, "model.embed_tokens.weight": ("I32", (4000, 64))}),
        # Rows beyond the vocabulary, to make it a round number.
        ({"vocab_size": 31_990}, SHAPES),
        ({"num_hidden_layers": 7}, {"embedding": ("F16", (32_000, 64))}),
    ],
)
def test_what_the_tensors_may_bear_out_is_left_to_their_shapes(changes, shapes):
    check_claims({**LLAMA, **changes}, tensors(shapes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 10**9}, "num_labels 1000000000; at most 65536"),
        ({"vision_config": {"num_labels": 10**9}}, r"vision_config\.num_labels 1000000000"),
        ({"num_mtp_layers": 10**9}, "num_mtp_layers 1000000000"),
        ({"model_type": "gpt2", "n_layer": 10**9}, "num_hidden_layers 1000000000"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers 1000000000"),
        (
            {"model_type": "gpt_neo", "attention_types": [[["global"], 10**9]]},
            "attention_types 1000000000",
        ),
    ],
)
def test_numbers_that_lists_are_made_of_are_refused_before_one_is_made(changes, message):
    with pytest.raises(CheckpointError, match=message):
        make_model_config({**LLAMA, **changes})


def test_a_few_labels_are_no_reason_to_refuse():
    assert make_model_config({**LLAMA, "num_labels": 3}).num_labels == 3
