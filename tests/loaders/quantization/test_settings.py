import json
from pathlib import Path

import pytest
import structlog

from loaders.checkpoint.files import Checkpoint, TensorInfo
from loaders.errors import (
    CheckpointError,
    QuantizationNotFoundError,
    UnsupportedQuantizationError,
)
from loaders.quantization.settings import (
    infer_quantization,
    read_quantization,
    resolve_quantization,
)

GPTQ = {"bits": 4, "group_size": 128, "desc_act": True, "sym": True}


def packed_tensors(folder, *, method="gptq", bits=4, group_size=128, sizes=(512, 1408)):
    """The headers of one packed layer for each input size, with 256 outputs."""
    tensors = {}
    for number, size in enumerate(sizes):
        groups = 1 if group_size == -1 else -(-size // group_size)
        qweight = (size, 32) if method == "awq" else (size * bits // 32, 256)
        shapes = {
            "qweight": qweight,
            "qzeros": (groups, 256 * bits // 32),
            "scales": (groups, 256),
        }
        if method == "gptq":
            shapes["g_idx"] = (size,)
        for key, shape in shapes.items():
            name = f"model.layers.{number}.mlp.down_proj.{key}"
            dtype = "F16" if key == "scales" else "I32"
            tensors[name] = TensorInfo(name, dtype, shape, folder / "model.safetensors")
    return tensors


def read(folder, *, own=None, embedded=None, tensors=None):
    if own is not None:
        (folder / "quantize_config.json").write_text(json.dumps(own))
    config = {} if embedded is None else {"quantization_config": embedded}
    found = packed_tensors(folder) if tensors is None else tensors
    return read_quantization(Checkpoint(folder, (), found), config)


def test_either_settings_file_will_do(tmp_path):
    from_config = read(tmp_path, embedded={**GPTQ, "quant_method": "gptq"})
    from_own = read(tmp_path, own=GPTQ)
    assert from_config.base == from_own.base
    assert (from_config.source, from_own.source) == ("config.json", "quantize_config.json")
    assert (from_own.base.bits, from_own.base.group_size, from_own.desc_act) == (4, 128, True)


def test_settings_files_that_contradict_each_other_are_refused_with_both_values(tmp_path):
    with pytest.raises(CheckpointError, match=r"bits=4.*bits=8"):
        read(tmp_path, own=GPTQ, embedded={**GPTQ, "bits": 8, "quant_method": "gptq"})


@pytest.mark.parametrize(
    ("key", "own", "embedded"), [("checkpoint_format", "gptq_v2", "gptq"), ("sym", False, True)]
)
def test_files_that_would_decode_zero_points_differently_are_refused(tmp_path, key, own, embedded):
    with pytest.raises(CheckpointError, match=f"{key}={own}.*{key}={embedded}"):
        read(tmp_path, own={**GPTQ, key: own}, embedded={**GPTQ, key: embedded})


def test_a_setting_that_is_null_was_not_made(tmp_path):
    found = read(tmp_path, own={**GPTQ, "checkpoint_format": None, "sym": None})
    assert (found.base.checkpoint_format, found.sym) == ("gptq", True)


def test_a_plain_checkpoint_has_no_quantisation(tmp_path):
    assert read(tmp_path, tensors={}) is None


def test_settings_without_packed_tensors_are_refused(tmp_path):
    with pytest.raises(QuantizationNotFoundError, match="no tensor is packed"):
        read(tmp_path, own=GPTQ, tensors={})


def test_zero_points_are_v1_unless_the_checkpoint_says_v2(tmp_path):
    assert read(tmp_path, own=GPTQ).base.checkpoint_format == "gptq"
    v2 = read(tmp_path, own={**GPTQ, "checkpoint_format": "gptq_v2"})
    assert v2.base.checkpoint_format == "gptq_v2"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({**GPTQ, "bits": 5}, "5 bits"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
        ({**GPTQ, "group_size": 0}, "group_size 0"),
        ({**GPTQ, "group_size": -2}, "group_size -2"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "marlin"}, "marlin"),
        ({"quant_method": "awq", "bits": 8, "group_size": 128}, "8 bits"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 16}}}, "16 bits"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, settings, found):
    with pytest.raises(UnsupportedQuantizationError, match=found):
        read(tmp_path, own=settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 128},
        {**GPTQ, "bits": "four"},
        {**GPTQ, "bits": True},
        {**GPTQ, "dynamic": {"+:(": {}}},
        {**GPTQ, "dynamic": [1]},
        {**GPTQ, "dynamic": {"+:x": 3}},
        {**GPTQ, "dynamic": {"+:x": {"bits": "eight"}}},
    ],
)
def test_settings_of_the_wrong_type_are_refused(tmp_path, settings):
    with pytest.raises(CheckpointError):
        read(tmp_path, own=settings)


def test_dynamic_rules_override_or_skip_and_the_first_match_wins(tmp_path):
    rules = {
        r"-:.*\.0\..*": {},
        r"+:.*down_proj": {"bits": 8, "group_size": 64},
        r".*q_proj": {"bits": 3},
    }
    tensors = packed_tensors(tmp_path, sizes=(512,))
    wider = packed_tensors(tmp_path, bits=8, group_size=64, sizes=(512, 1408))
    tensors |= {name: tensor for name, tensor in wider.items() if ".1." in name}
    quantization = read(tmp_path, own={**GPTQ, "dynamic": rules}, tensors=tensors)
    assert quantization.format_of("model.layers.0.mlp.down_proj") is None
    down = quantization.format_of("model.layers.1.mlp.down_proj")
    assert (down.bits, down.group_size) == (8, 64)
    q = quantization.format_of("model.layers.1.self_attn.q_proj")
    assert (q.bits, q.group_size) == (3, 128)
    assert quantization.format_of("model.layers.1.mlp.up_proj") == quantization.base


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 16, 32, 64, 128])
def test_gptq_without_settings_is_inferred_from_shapes_and_logged(tmp_path, bits, group_size):
    tensors = packed_tensors(tmp_path, bits=bits, group_size=group_size)
    with structlog.testing.capture_logs() as logs:
        quantization = read(tmp_path, tensors=tensors)
    base = quantization.base
    assert (base.quant_method, base.bits, base.group_size) == ("gptq", bits, group_size)
    assert [entry["event"] for entry in logs] == ["quantization_inferred"]


@pytest.mark.parametrize("group_size", [-1, 64, 128])
def test_awq_without_settings_is_told_from_gptq(tmp_path, group_size):
    tensors = packed_tensors(tmp_path, method="awq", group_size=group_size)
    base = infer_quantization(tensors).base
    assert (base.quant_method, base.bits, base.group_size) == ("awq", 4, group_size)


def test_a_partial_last_group_is_inferred(tmp_path):
    tensors = packed_tensors(tmp_path, group_size=128, sizes=(576, 1536))
    assert infer_quantization(tensors).base.group_size == 128


def test_layers_of_different_widths_without_settings_are_refused(tmp_path):
    tensors = packed_tensors(tmp_path, sizes=(512,))
    other = packed_tensors(tmp_path, bits=8, sizes=(512, 512))
    tensors |= {name: t for name, t in other.items() if ".1." in name}
    with pytest.raises(QuantizationNotFoundError, match="disagree"):
        infer_quantization(tensors)


def test_packed_weights_without_zero_points_are_refused_by_name(tmp_path):
    tensors = {n: t for n, t in packed_tensors(tmp_path).items() if "qzeros" not in n}
    with pytest.raises(QuantizationNotFoundError, match="qzeros"):
        infer_quantization(tensors)


@pytest.mark.parametrize(
    "settings",
    [
        {**GPTQ, "dynamic": {r"+:model\.layers\.(a+)+$": {"bits": 8}}},
        {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:gptq",
         "extra_config": {r"model\.layers\.(a+)+$": {"bits": 8}}},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
            "a": {"targets": [r"re:model\.layers\.(a+)+$"],
                  "weights": {"num_bits": 4, "group_size": 128}}}},
    ],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_a_checkpoints_own_patterns_cannot_take_exponential_time(settings):
    name = f"model.layers.{'a' * 300}!"
    ending = "weight_packed" if "config_groups" in settings else "qweight"
    info = TensorInfo(f"{name}.{ending}", "I32", (8, 8), Path("x"))
    found = resolve_quantization(None, {"quantization_config": settings}, {info.name: info})
    assert found.format_of(name) == (None if "config_groups" in settings else found.base)
