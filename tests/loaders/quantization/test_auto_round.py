"""auto-round's settings; whole checkpoints are in `test_load_formats`."""

import pytest

from loaders.errors import CheckpointError, UnsupportedQuantizationError
from loaders.quantization.auto_round import translate

SETTINGS = {"bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"}


def test_a_kernel_behind_the_packing_format_changes_nothing():
    plain = translate({**SETTINGS, "packing_format": "auto_round:gptq"}, "x")
    assert translate({**SETTINGS, "packing_format": "auto_round:gptq:exllamav2"}, "x") == plain


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
