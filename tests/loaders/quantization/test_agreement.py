"""From headers alone; whole checkpoints are in `tests/loaders/test_load_settings.py`."""

from pathlib import Path

import pytest
import structlog

from loaders.checkpoint.files import TensorInfo
from loaders.errors import TensorError
from loaders.quantization.settings import resolve_quantization

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


def gptq_layer(name, *, bits=4, group_size=128, in_features=512, **shapes):
    """Headers of a layer with 256 outputs; shapes by key replace its own."""
    groups = 1 if group_size == -1 else -(-in_features // group_size)
    made = {
        "qweight": (in_features * bits // 32, 256),
        "qzeros": (groups, 256 * bits // 32),
        "scales": (groups, 256),
        "g_idx": (in_features,),
    } | shapes
    return {
        f"{name}.{key}": TensorInfo(f"{name}.{key}", "I32", shape, Path("x"))
        for key, shape in made.items()
        if shape is not None
    }


def resolve(tensors, **config):
    settings = config.pop("settings", GPTQ)
    return resolve_quantization(None, {"quantization_config": settings, **config}, tensors)


def test_layers_that_all_say_otherwise_change_what_the_checkpoint_is():
    tensors = gptq_layer("a", bits=8, group_size=64) | gptq_layer("b", bits=8, group_size=64)
    found = resolve(tensors)
    assert str(found) == "gptq 8-bit group 64"
    assert found.remarks == (
        "config.json says gptq of 4 bits, group size 128, the tensors are gptq of 8 bits,"
        " group size 64",
    )


def test_a_layer_that_says_otherwise_by_two_tensors_has_a_format_of_its_own():
    tensors = gptq_layer("a") | gptq_layer("b", bits=3, group_size=32)
    with structlog.testing.capture_logs() as logs:
        found = resolve(tensors)
    assert str(found) == "gptq 4-bit group 128"
    own = found.format_of("b")
    assert (own.bits, own.group_size, found.format_of("a")) == (3, 32, found.base)
    (entry,) = [entry for entry in logs if entry["event"] == "settings_contradict_tensors"]
    assert (entry["layers"], entry["first"]) == (1, ["b"])


def test_settings_that_agree_are_returned_as_they_are():
    found = resolve(gptq_layer("a") | gptq_layer("b", in_features=576))
    assert (found.remarks, found.formats) == ((), {})


def test_a_rule_that_lies_of_one_layer_gives_way():
    rules = {"+:b$": {"bits": 8}}
    found = resolve(gptq_layer("a") | gptq_layer("b"), settings={**GPTQ, "dynamic": rules})
    assert found.format_of("b") == found.base


def test_groups_that_no_size_explains_are_refused_with_what_was_found():
    tensors = gptq_layer("a", qzeros=(5, 32), scales=(5, 256))
    with pytest.raises(TensorError, match=r"a\.qzeros is \[5, 32\], expected \[4, 32\]"):
        resolve(tensors)


def test_layers_of_several_layouts_are_refused_by_name():
    gemm = gptq_layer("b", qweight=(512, 32), g_idx=None)
    with pytest.raises(TensorError, match="several layouts by their shapes: a gptq, b gemm"):
        resolve(gptq_layer("a") | gemm)


def test_act_order_needs_an_index_wherever_there_are_groups():
    settings = {**GPTQ, "desc_act": True}
    with pytest.raises(TensorError, match=r"a has 4 groups and no g_idx, but config\.json says"):
        resolve(gptq_layer("a", g_idx=None), settings=settings)
    one_group = gptq_layer("a", group_size=-1, g_idx=None)
    assert resolve(one_group, settings={**settings, "group_size": -1}).desc_act


def test_a_rule_may_keep_act_order_from_a_layer():
    settings = {**GPTQ, "desc_act": True, "dynamic": {"+:a$": {"desc_act": False}}}
    assert resolve(gptq_layer("a", g_idx=None), settings=settings).desc_act


def compressed_layer(name, *, words, groups):
    parts = {"weight_packed": ("I32", (256, words)), "weight_scale": ("F16", (256, groups))}
    return {
        f"{name}.{key}": TensorInfo(f"{name}.{key}", dtype, shape, Path("x"))
        for key, (dtype, shape) in parts.items()
    }


def compressed_settings(bits):
    weights = {"num_bits": bits, "group_size": 128}
    groups = {"g": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": groups}  # fmt: skip


@pytest.mark.parametrize("stated", [2, 3, 4, 8])
def test_the_models_sizes_tell_bits_that_lie_in_no_tensor(stated):
    tensors = compressed_layer("a", words=64, groups=4) | compressed_layer("b", words=128, groups=8)
    sizes = {"hidden_size": 512, "intermediate_size": 1024}
    found = resolve(tensors, settings=compressed_settings(stated), **sizes)
    assert (found.base.bits, found.base.group_size) == (4, 128)
    assert bool(found.remarks) is (stated != 4)


def test_a_layer_of_an_unusual_size_leaves_the_bits_as_they_are_said():
    """As the inputs of a low-rank projection, of which config.json need not say anything."""
    tensors = compressed_layer("a", words=64, groups=4) | compressed_layer("b", words=24, groups=2)
    found = resolve(tensors, settings=compressed_settings(4), hidden_size=512)
    assert found.remarks == ()


@pytest.mark.parametrize("size", [[512], {"a": 1}, None, "512", -1, True, 1e300])
def test_sizes_that_are_none_tell_no_bits(size):
    tensors = compressed_layer("a", words=64, groups=4)
    settings = compressed_settings(4)
    found = resolve(tensors, settings=settings, hidden_size=size, head_dim=size, text_config=[1])
    assert found.remarks == ()


def test_one_layer_whose_scales_alone_say_otherwise_is_damaged():
    tensors = compressed_layer("a", words=64, groups=4) | compressed_layer("b", words=64, groups=2)
    with pytest.raises(TensorError, match=r"b\.weight_scale is \[256, 2\], expected \[256, 4\]"):
        resolve(tensors, settings=compressed_settings(4), hidden_size=512)
