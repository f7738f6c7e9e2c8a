import pytest
import structlog

from loaders.errors import UnsupportedQuantizationError
from loaders.quantization.known_settings import check_known, report_left_alone, said_symmetry


def logged(settings, method="gptq"):
    with structlog.testing.capture_logs() as logs:
        check_known(settings, "x", method)
    return [(entry["event"], entry.get("keys")) for entry in logs]


def test_what_tools_write_beside_the_parameters_is_known():
    settings = {"bits": 4, "damp_percent": 0.1, "static_groups": False, "meta": {}, "dataset": "c4",
                "true_sequential": True, "model_file_base_name": "model"}  # fmt: skip
    assert logged(settings) == []


def test_what_nobody_knows_is_named():
    assert logged({"bits": 4, "zebra": 1, "ant": 2}) == [("settings_not_read", ["ant", "zebra"])]


@pytest.mark.parametrize(
    ("method", "settings", "is_told"),
    [
        ("awq", {"version": "gemm"}, False),
        ("gptq", {"version": "gemm"}, True),
        ("awq", {"checkpoint_format": "gemm"}, False),
        ("awq", {"checkpoint_format": "gptq"}, True),
        ("gptq", {"checkpoint_format": "gptq"}, False),
    ],
)
def test_a_setting_of_the_other_method_is_told(method, settings, is_told):
    assert bool(logged(settings, method)) is is_told


@pytest.mark.parametrize(
    "settings",
    [{"is_marlin_format": True}, {"pack_dtype": "int16"}, {"rotation": "random"}],
)
def test_what_changes_the_decoding_is_refused_by_name(settings):
    with pytest.raises(UnsupportedQuantizationError, match=next(iter(settings))):
        check_known(settings, "x", "gptq")


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"modules_to_not_convert": ["mlp.down_proj"]}, ["model.layers.0.mlp.down_proj"]),
        ({"modules_to_not_convert": ["mlp.down", "lm_head"]}, []),
        ({"modules_to_not_convert": None}, []),
        ({"ignore": ["model.layers.0.mlp.down_proj", "re:.*"]}, ["model.layers.0.mlp.down_proj"]),
        (
            {"modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]]},
            ["model.layers.0.mlp.down_proj"],
        ),
        ({"modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]]}, []),
    ],
)
def test_packed_modules_that_settings_leave_alone_are_told(settings, wrong):
    names = ["model.layers.0.mlp.down_proj.qweight", "model.layers.0.self_attn.q_proj.qweight"]
    with structlog.testing.capture_logs() as logs:
        report_left_alone(settings, "x", dict.fromkeys(names))
    assert [name for entry in logs for name in entry["first"]] == wrong


@pytest.mark.parametrize(
    ("settings", "decisive", "found"),
    [
        ({}, "sym", None),
        ({"sym": True}, "sym", True),
        ({"zero_point": True}, "sym", False),
        ({"sym": True, "zero_point": True}, "sym", True),
        ({"sym": True, "zero_point": True}, "zero_point", False),
    ],
)
def test_each_method_has_its_own_word_for_symmetry(settings, decisive, found):
    assert said_symmetry(settings, "x", decisive=decisive) is found
