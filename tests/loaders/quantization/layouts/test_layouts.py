"""How the layout of a format is found."""

from __future__ import annotations

import pytest

from loaders.errors import UnsupportedQuantizationError
from loaders.quantization.layouts import LAYOUTS, PACKED_ENDINGS, layout_of
from loaders.quantization.packed_format import PackedFormat


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_packed_layer_is_known_by_the_ending_of_its_layout(name):
    layout = layout_of(PackedFormat("gptq", name, 4, 128))
    assert f".{layout.marker}" in PACKED_ENDINGS


def test_a_format_without_a_layout_is_refused_by_name():
    with pytest.raises(
        UnsupportedQuantizationError, match=r"'marlin' is not read; known are .*gemm"
    ):
        layout_of(PackedFormat("gptq", "marlin", 4, 128))
