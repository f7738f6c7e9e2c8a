"""Sizes of a model, from its config."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPTBigCodeConfig

from loaders.checkpoint.config_limits import LARGEST_SIZES, check_sizes
from loaders.checkpoint.shape import read_shape
from loaders.errors import CheckpointError
from tests.published import CODELLAMA_7B, CODELLAMA_13B, CODELLAMA_34B, CODELLAMA_70B


@pytest.mark.parametrize(
    ("shape", "kib"),
    [(CODELLAMA_7B, 512), (CODELLAMA_13B, 800), (CODELLAMA_34B, 192), (CODELLAMA_70B, 320)],
)
def test_a_token_takes_the_known_kibibytes_in_half_precision(shape, kib):
    """2 (keys, values) x layers x heads x 128 x 2 bytes: 7B 2x32x32x128x2 = 512 KiB."""
    read = read_shape(shape.config())
    assert read.kv_bytes_per_token("float16") == kib * 1024
    assert read.kv_bytes_per_token("float32") == 2 * kib * 1024


def test_fp8_takes_half_and_a_scale_for_each_head():
    read = read_shape(CODELLAMA_7B.config())
    assert read.kv_bytes_per_token("fp8") == 2 * 32 * 32 * (128 + 2)


def test_what_a_config_leaves_out_follows_from_the_rest():
    read = read_shape(
        {
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_hidden_layers": 2,
            "vocab_size": 100,
            "max_position_embeddings": 64,
        }
    )
    assert (read.num_kv_heads, read.head_dim, read.intermediate_size) == (8, 64, 2048)


@pytest.mark.parametrize(("multi_query", "num_kv_heads"), [(True, 1), (False, 4)])
def test_the_names_of_older_families_mean_the_same(multi_query, num_kv_heads):
    made = GPTBigCodeConfig(
        n_embd=64, n_layer=3, n_head=4, n_inner=None, n_positions=128, multi_query=multi_query,
        vocab_size=100,
    )  # fmt: skip
    read = read_shape(json.loads(made.to_json_string(use_diff=False)))
    assert (read.hidden_size, read.num_layers, read.num_heads) == (64, 3, 4)
    assert (read.num_kv_heads, read.intermediate_size, read.max_context) == (
        num_kv_heads, 256, 128,
    )  # fmt: skip


def test_a_nested_text_config_is_read():
    assert read_shape({"model_type": "x", "text_config": CODELLAMA_7B.config()}).num_layers == 32


@pytest.mark.parametrize("value", [None, 0, -1, True, "32", 1e3, 10**30, [32]])
def test_absurd_sizes_are_refused_by_name(value):
    config = {**CODELLAMA_7B.config(), "num_hidden_layers": value}
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        read_shape(config)


@given(
    st.dictionaries(
        st.sampled_from([*CODELLAMA_7B.config(), "text_config"]),
        st.one_of(
            st.none(),
            st.integers(),
            st.text(max_size=5),
            st.floats(),
            st.lists(st.integers(), max_size=2),
        ),
        max_size=6,
    )
)
def test_any_config_is_read_or_refused(changes):
    with contextlib.suppress(CheckpointError):
        read_shape({**CODELLAMA_7B.config(), **changes})


@pytest.mark.parametrize("name", LARGEST_SIZES)
def test_a_plan_and_a_load_bound_sizes_alike(name):
    sizes = {**dict.fromkeys(LARGEST_SIZES, 8), name: LARGEST_SIZES[name]}
    check_sizes(sizes)
    read_shape(sizes)
    sizes[name] += 1
    for check in (check_sizes, read_shape):
        with pytest.raises(CheckpointError, match=name):
            check(sizes)
