"""compressed-tensors' settings; whole checkpoints are in `test_load_formats`."""

import pytest

from loaders.errors import CheckpointError, UnsupportedQuantizationError
from loaders.quantization.compressed_tensors import LayerGroup, read_groups
from loaders.quantization.layouts.compressed_tensors import PackQuantized

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def settings(*, weights=None, scheme=None, **whole):
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **(weights or {})}, **(scheme or {})}
    return {"format": "pack-quantized", "config_groups": {"group_0": group}, **whole}


def only_group(**changes):
    (group,) = read_groups(settings(**changes), "config.json")
    return group


def test_a_group_says_how_its_layers_are_packed():
    assert only_group() == LayerGroup(
        pattern=None,
        bits=4,
        group_size=128,
        layout=PackQuantized.SYMMETRIC,
        has_act_order=False,
    )


@pytest.mark.parametrize(
    ("weights", "group_size", "layout"),
    [
        ({"strategy": "channel", "group_size": None}, -1, PackQuantized.SYMMETRIC),
        ({"strategy": None, "group_size": -1}, -1, PackQuantized.SYMMETRIC),
        ({"strategy": None, "group_size": None}, -1, PackQuantized.ONE_SCALE),
        ({"symmetric": False}, 128, PackQuantized.ZERO_POINTS),
    ],
)
def test_strategy_and_symmetry_decide_the_layout(weights, group_size, layout):
    group = only_group(weights=weights)
    assert (group.group_size, group.layout) == (group_size, layout)


@pytest.mark.parametrize("actorder", [None, "weight", "static", "group"])
def test_only_act_order_by_group_moves_inputs(actorder):
    assert only_group(weights={"actorder": actorder}).has_act_order == (actorder == "group")


def test_layers_named_in_full_come_before_patterns_and_those_before_classes():
    weights = {"weights": WEIGHTS}
    groups = {
        "a": {"targets": ["Linear"], **weights},
        "b": {"targets": ["re:.*mlp", "model.layers.0.mlp.down_proj"], **weights},
    }
    found = read_groups({"format": "pack-quantized", "config_groups": groups}, "config.json")
    patterns = [group.pattern for group in found]
    assert patterns == [r"model\.layers\.0\.mlp\.down_proj$", ".*mlp", None]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"format": "float-quantized"}, "float-quantized"),
        ({"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"format": "int-quantized"}, "int-quantized"),
        ({"format": "marlin-24"}, "marlin-24"),
        ({"format": None}, "None"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "quantises the KV cache"),
        ({"transform_config": {"config_groups": {"x": 1}}}, "rotates"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({"scheme": {"input_activations": {"num_bits": 8}}}, "quantises input_activations"),
        ({"scheme": {"format": "naive-quantized"}}, "naive-quantized"),
        ({"scheme": {"weights": None}}, "without settings for weights"),
        ({"weights": {"type": "float"}}, "type 'float'"),
        ({"weights": {"dynamic": True}}, "while running"),
        ({"weights": {"strategy": "block"}}, "strategy 'block'"),
        ({"weights": {"strategy": "tensor", "symmetric": False}}, "one zero point"),
    ],
)
def test_what_is_not_read_is_refused_by_name(changes, found):
    with pytest.raises(UnsupportedQuantizationError, match=found):
        read_groups(settings(**changes), "config.json")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"config_groups": {}}, "no config_groups"),
        ({"config_groups": [1]}, "no config_groups"),
        ({"scheme": {"targets": "Linear"}}, "list of targets"),
        ({"scheme": {"targets": ["re:("]}}, "unreadable target"),
        ({"weights": {"num_bits": "four"}}, "num_bits"),
        ({"weights": {"group_size": None}}, "no size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, found):
    with pytest.raises(CheckpointError, match=found):
        read_groups(settings(**changes), "config.json")
