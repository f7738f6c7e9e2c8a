"""RoPE as a GGUF file says it, against llama.cpp's own formula of the angles."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from loaders.errors import CheckpointError, LoadError, UnsupportedModelError
from loaders.gguf.metadata import Settings
from loaders.gguf.rope import make_rope

HEAD_DIM = 64
CONTEXT = 2048
TENSORS = {
    "rope_freqs.weight": np.linspace(1.0, 8.0, HEAD_DIM // 2).tolist(),
    "rope_factors_long.weight": np.linspace(1.0, 30.0, HEAD_DIM // 2).tolist(),
    "rope_factors_short.weight": np.linspace(1.0, 1.5, HEAD_DIM // 2).tolist(),
}


def settings(**keys):
    own = {"context_length": CONTEXT, **{key.replace("__", "."): keys[key] for key in keys}}
    metadata = {"general.architecture": "llama"}
    return Settings(metadata | {f"llama.{key}": value for key, value in own.items()})


def rope_of(tensors=(), **keys):
    return make_rope(settings(**keys), HEAD_DIM, dict.fromkeys(tensors), TENSORS.__getitem__)


def angles(rope):
    """Frequencies [head / 2], and by what queries and keys are multiplied, as Transformers has."""
    config = LlamaConfig(
        hidden_size=HEAD_DIM,
        num_attention_heads=1,
        max_position_embeddings=CONTEXT,
        rope_parameters=rope,
    )
    embedding = LlamaRotaryEmbedding(config)
    return embedding.inv_freq, embedding.attention_scaling


def expected_angles(*, base=10_000.0, factor=1.0, by_frequency=None, attention=1.0, yarn=None):
    """Compute the same by ggml's formula; yarn: original context, beta_fast, beta_slow."""
    half = np.arange(HEAD_DIM // 2)
    plain = base ** (-2.0 * half / HEAD_DIM) / (1.0 if by_frequency is None else by_frequency)
    if yarn is None:
        return plain / factor, attention
    context, fast, slow = yarn

    def dimension(turns):
        return HEAD_DIM * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0, math.floor(dimension(fast)))
    high = min(HEAD_DIM - 1, math.ceil(dimension(slow)))
    kept = 1 - np.clip((half - low) / max(0.001, high - low), 0, 1)
    return plain / factor * (1 - kept) + plain * kept, attention * (1 + 0.1 * math.log(factor))


LINEAR_4 = expected_angles(factor=4.0)
CASES = {
    "nothing said": ({}, (), expected_angles()),
    "another base": ({"rope__freq_base": 1e6}, (), expected_angles(base=1e6)),
    "linear": ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, (), LINEAR_4),
    "a factor without a kind": ({"rope__scaling__factor": 4.0}, (), LINEAR_4),
    "the old name of the factor": ({"rope__scale_linear": 4.0}, (), LINEAR_4),
    "both names, the new one counts": (
        {"rope__scaling__factor": 4.0, "rope__scale_linear": 2.0}, (), LINEAR_4,
    ),
    "the old name with a kind": (
        {"rope__scaling__type": "linear", "rope__scale_linear": 4.0}, (), LINEAR_4,
    ),
    "a whole number": ({"rope__scaling__factor": 4}, (), LINEAR_4),
    "linear without a factor": ({"rope__scaling__type": "linear"}, (), expected_angles()),
    "a factor of nought": ({"rope__scaling__factor": 0.0}, (), expected_angles()),
    "none, whatever the factor": (
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, (), expected_angles(),
    ),
    "linear with its attention scaled": (
        {"rope__scaling__factor": 4.0, "rope__scaling__attn_factor": 1.25},
        (),
        expected_angles(factor=4.0, attention=1.25),
    ),
    "factors of single frequencies": (
        {},
        ["rope_freqs.weight"],
        expected_angles(by_frequency=TENSORS["rope_freqs.weight"]),
    ),
    "both kinds of factors": (
        {"rope__scaling__factor": 2.0},
        ["rope_freqs.weight"],
        expected_angles(factor=2.0, by_frequency=TENSORS["rope_freqs.weight"]),
    ),
    "longrope, a short text": (
        {"rope__scaling__type": "longrope", "rope__scaling__attn_factor": 1.19},
        ["rope_factors_long.weight", "rope_factors_short.weight"],
        expected_angles(by_frequency=TENSORS["rope_factors_short.weight"], attention=1.19),
    ),
    "longrope without a factor of attention": (
        {"rope__scaling__type": "longrope"},
        ["rope_factors_long.weight", "rope_factors_short.weight"],
        expected_angles(by_frequency=TENSORS["rope_factors_short.weight"]),
    ),
    "yarn": (
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 512,
        },
        (),
        expected_angles(factor=4.0, yarn=(512, 32, 1)),
    ),
    "yarn without an original context": (
        {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
        (),
        expected_angles(factor=4.0, yarn=(CONTEXT, 32, 1)),
    ),
    "yarn without a factor": ({"rope__scaling__type": "yarn"}, (), expected_angles()),
    "yarn with all that it can say": (
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 8.0,
            "rope__scaling__original_context_length": 256,
            "rope__scaling__attn_factor": 0.5,
            "rope__scaling__yarn_ext_factor": 1.0,
            "rope__scaling__yarn_attn_factor": 1.0,
            "rope__scaling__yarn_beta_fast": 16.0,
            "rope__scaling__yarn_beta_slow": 2.0,
        },
        (),
        expected_angles(factor=8.0, attention=0.5, yarn=(256, 16, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_angles_are_those_of_llama_cpp(case):
    keys, tensors, (frequencies, scaling) = CASES[case]
    found, found_scaling = angles(rope_of(tensors, **keys))
    wanted = torch.tensor(frequencies, dtype=torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0.0)
    assert found_scaling == pytest.approx(scaling, rel=1e-6)


def test_a_long_text_has_the_factors_for_long_ones():
    names = ["rope_factors_long.weight", "rope_factors_short.weight"]
    rope = rope_of(names, rope__scaling__original_context_length=128)
    assert rope["long_factor"] == TENSORS["rope_factors_long.weight"]
    assert rope["short_factor"] == TENSORS["rope_factors_short.weight"]
    assert rope["original_max_position_embeddings"] == 128


@pytest.mark.parametrize(
    ("rotated", "head_dim"), [(32, 64), (58, 100), (96, 128), (2, 6), (22, 46)]
)
def test_the_share_that_rotates_multiplies_back_to_it(rotated, head_dim):
    rope = make_rope(settings(rope__dimension_count=rotated), head_dim, {}, None)
    assert int(head_dim * rope["partial_rotary_factor"]) == rotated


@pytest.mark.parametrize(
    ("keys", "tensors", "kind", "problem"),
    [
        (
            {"rope__scaling__type": "su"},
            (),
            UnsupportedModelError,
            "scales RoPE by 'su'; none, lin",
        ),
        ({"rope__scaling__type": 3}, (), UnsupportedModelError, "scales RoPE by '3'"),
        (
            {"rope__scaling__factor": -2.0},
            (),
            CheckpointError,
            "factor is -2.0, expected a positive",
        ),
        ({"rope__scaling__factor": math.inf}, (), CheckpointError, "factor is inf, expected"),
        ({"rope__dimension_count": 31}, (), CheckpointError, "count is 31, expected an even"),
        (
            {"rope__dimension_count": 128},
            (),
            CheckpointError,
            "expected a whole number from 2 to 64",
        ),
        ({"rope__scaling__type": "longrope"}, (), CheckpointError, "holds no rope_factors_long"),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0},
            ["rope_freqs.weight"],
            UnsupportedModelError,
            r"by yarn and by rope_freqs\.weight",
        ),
        ({}, ["rope_factors_long.weight"], CheckpointError, r"expected rope_freqs\.weight alone"),
        (
            {},
            list(TENSORS),
            CheckpointError,
            r"rope_freqs\.weight and rope_factors_long\.weight and",
        ),
        ({"rope__scaling__yarn_ext_factor": 1.0}, (), CheckpointError, "expected 0 without yarn"),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__yarn_ext_factor": 0.5},
            (),
            CheckpointError,
            "ext_factor is 0.5, expected 1 with yarn",
        ),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__yarn_attn_factor": 2.0},
            (),
            CheckpointError,
            "attn_factor is 2.0, expected 1 or",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(keys, tensors, kind, problem):
    with pytest.raises(kind, match=problem):
        rope_of(tensors, **keys)


@pytest.mark.parametrize("values", [[1.0], [1.0] * 31 + [0.0], [1.0] * 31 + [math.nan]])
def test_factors_are_as_many_as_frequencies_and_positive(values):
    with pytest.raises(LoadError, match=r"rope_freqs\.weight holds (1 factors|values that are no)"):
        make_rope(settings(), HEAD_DIM, {"rope_freqs.weight": None}, lambda _: values)


def test_factors_are_left_out_where_nothing_is_computed():
    rope = make_rope(settings(), HEAD_DIM, {"rope_freqs.weight": None}, None)
    assert rope == {"rope_type": "default", "rope_theta": 10_000.0}
