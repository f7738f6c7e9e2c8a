"""auto-round's settings; whole checkpoints are in `test_load_formats`."""

import pytest

from loaders.errors import CheckpointError, UnsupportedQuantizationError
from loaders.quantization.auto_round import translate
from loaders.quantization.name_patterns import NamePatterns

SETTINGS = {"bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"}


def test_a_kernel_behind_the_packing_format_changes_nothing():
    plain = translate({**SETTINGS, "packing_format": "auto_round:gptq"}, "x")
    assert translate({**SETTINGS, "packing_format": "auto_round:gptq:exllamav2"}, "x") == plain


@pytest.mark.parametrize("backend", ["gptq", "gptq:exllamav2", "gptq:triton"])
def test_the_first_releases_name_for_gptqs_packing_is_read(backend):
    settings = {"bits": 4, "group_size": 128, "backend": backend}
    assert translate(settings, "x") == translate(SETTINGS, "x")


def test_a_plain_name_is_of_whole_parts_and_a_pattern_of_any():
    extra = {"mlp.gate": {"bits": 16}, "o_proj": {"bits": 16}, r"layers\.1.*up": {"bits": 8}}
    rules = translate({**SETTINGS, "extra_config": extra}, "x")["dynamic"]
    patterns = NamePatterns(rule.removeprefix("+:").removeprefix("-:") for rule in rules)
    assert patterns.find("model.layers.0.mlp.gate") is not None
    assert patterns.find("model.layers.0.mlp.gate_proj") is None
    assert patterns.find("model.layers.0.self_attn.o_proj") is not None
    assert patterns.find("model.layers.0.self_attn.qo_proj") is None
    assert patterns.find("model.layers.1.mlp.up_proj") is not None


@pytest.mark.parametrize("backend", ["auto_round:exllamav2", "autoround:triton", "marlin"])
def test_names_that_do_not_say_how_zero_points_are_stored_are_refused(backend):
    settings = {"bits": 4, "group_size": 128, "backend": backend}
    with pytest.raises(UnsupportedQuantizationError, match=backend):
        translate(settings, "config.json")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"packing_format": "auto_round:fp8_static"}, "fp8_static"),
        ({"packing_format": "auto_round:llm_compressor"}, "llm_compressor"),
        ({"packing_format": None}, "None"),
        ({"data_type": "mx_fp"}, "mx_fp"),
        ({"act_bits": 8}, "activations of 8 bits"),
        ({"rotation_config": {"algorithm": "hadamard"}}, "rotated"),
        ({"extra_config": {"lm_head": {"data_type": "nv_fp"}}}, r"rule for lm_head.*nv_fp"),
    ],
)
def test_what_has_no_layout_of_ours_is_refused_by_name(change, found):
    with pytest.raises(UnsupportedQuantizationError, match=found):
        translate({**SETTINGS, **change}, "config.json")


@pytest.mark.parametrize("extra", [[1], {"lm_head": 3}, "x"])
def test_rules_of_the_wrong_type_are_refused(extra):
    with pytest.raises(CheckpointError, match="extra_config"):
        translate({**SETTINGS, "extra_config": extra}, "config.json")
