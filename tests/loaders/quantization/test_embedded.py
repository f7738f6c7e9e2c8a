import pytest

from loaders.errors import CheckpointError
from loaders.quantization.embedded import embedded_settings

SETTINGS = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": SETTINGS},
        {"compression_config": SETTINGS},
        {"compression_config": {"quantization_config": SETTINGS}},
        {"text_config": {"quantization_config": SETTINGS}},
        {"quantization_config": SETTINGS, "text_config": {"quantization_config": SETTINGS}},
        {"quantization_config": None, "compression_config": SETTINGS},
    ],
)
def test_settings_are_found_wherever_tools_put_them(config):
    assert embedded_settings(config) == SETTINGS


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"text_config": "x"}])
def test_a_config_without_them_says_nothing(config):
    assert embedded_settings(config) is None


def test_what_stands_beside_nested_settings_is_kept():
    sparsity = {"format": "dense"}
    nested = {"quantization_config": SETTINGS, "sparsity_config": sparsity}
    found = embedded_settings({"compression_config": nested})
    assert found == {**SETTINGS, "sparsity_config": sparsity}


def test_two_places_that_differ_are_refused_by_their_names():
    config = {"quantization_config": SETTINGS, "compression_config": {**SETTINGS, "bits": 8}}
    with pytest.raises(CheckpointError, match="quantization_config and its compression_config"):
        embedded_settings(config)


def test_settings_that_are_no_object_are_refused():
    with pytest.raises(CheckpointError, match=r"text_config\.quantization_config is not an object"):
        embedded_settings({"text_config": {"quantization_config": "gptq"}})
