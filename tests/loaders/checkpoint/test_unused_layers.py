"""Which layers of a checkpoint a model of its config.json does not have."""

import pytest

from loaders.checkpoint.unused_layers import find_unused_layers

TWO = ["model.embed_tokens.weight", "model.layers.0.a.weight", "model.layers.1.a.weight"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model.layers.2.mlp.up_proj.weight", 2),
        ("transformer.h.12.attn.c_attn.weight", 12),
        ("gpt_neox.layers.2.attention.dense.bias", 2),
        ("language_model.model.layers.30.a.qweight", 30),
        ("layers.2.a", 2),
        ("h.4.ln_1.weight", 4),
    ],
)
def test_layers_from_the_number_on_are_unused(name, number):
    found = find_unused_layers([*TWO, name], {}, 2)
    assert found.names == {name}
    assert found.numbers == found.unexplained == (number,)


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.encoder.layers.20.a.weight",
        "model.visual.blocks.20.a.weight",
        "model.layers.1.mlp.layers.7.weight",
        "mtp.layers.5.a.weight",
        "model.layers.x.a",
    ],
)
def test_other_things_with_numbers_are_no_layers_of_the_decoder(name):
    assert find_unused_layers([*TWO, name], {}, 2).names == frozenset()


@pytest.mark.parametrize(
    "config",
    [
        {"num_nextn_predict_layers": 1},
        {"num_mtp_layers": 1},
        {"text_config": {"num_nextn_predict_layers": 1}},
    ],
)
def test_layers_that_predict_more_tokens_are_explained_up_to_their_number(config):
    names = [*TWO, "model.layers.2.eh_proj.weight", "model.layers.3.a.weight"]
    found = find_unused_layers(names, config, 2)
    assert found.numbers == (2, 3)
    assert found.unexplained == (3,)


@pytest.mark.parametrize("strange", [True, "1", None, 1.5, [1]])
def test_a_count_that_is_no_number_explains_nothing(strange):
    config = {"num_nextn_predict_layers": strange, "text_config": strange}
    assert find_unused_layers([*TWO, "model.layers.2.a"], config, 2).unexplained == (2,)


def test_a_model_that_counts_no_layers_has_none_unused():
    assert find_unused_layers(TWO, {}, None).names == frozenset()
