from pathlib import Path

import pytest

from loaders.checkpoint.files import TensorInfo
from loaders.quantization.stored_shapes import compressed_shape, packed_modules, possible_shapes


def tensors_of(**parts):
    """Headers of the module `m`, by key: a shape, or a dtype and a shape."""
    found = {}
    for key, value in parts.items():
        dtype, shape = value if "I16" in value or "F16" in value else ("I32", value)
        found[f"m.{key}"] = TensorInfo(f"m.{key}", dtype, tuple(shape), Path("x"))
    return found


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (
            {"qweight": (64, 256), "qzeros": (4, 32), "scales": (4, 256)},
            {"gptq": (4, 512, 256, 4)},
        ),
        (
            {"qweight": (48, 256), "qzeros": (4, 24), "scales": (4, 256), "g_idx": (512,)},
            {"gptq": (3, 512, 256, 4)},
        ),
        (
            {"qweight": (512, 32), "qzeros": (4, 32), "scales": (4, 256)},
            {"gemm": (4, 512, 256, 4)},
        ),
        (
            {"qweight": (256, 64), "qzeros": (256, 1), "scales": (256, 8)},
            {"gemv": (4, 512, 256, 8)},
        ),
        (
            {"qweight": ("I16", (64, 512)), "qzeros": ("F16", (8, 256)), "scales": (8, 256)},
            {"gemv_fast": (4, 512, 256, 8)},
        ),
        # Groups of eight at 4 bits: as GEMV it would be 64 outputs of 2048 inputs in 256 groups.
        (
            {"qweight": (64, 256), "qzeros": (64, 32), "scales": (64, 256)},
            {"gptq": (4, 512, 256, 64), "gemv": (4, 2048, 64, 256)},
        ),
        # Of which nothing is what it should be.
        ({"qweight": (64, 256), "qzeros": (3, 32), "scales": (4, 256)}, {}),
        ({"qweight": (64, 256), "qzeros": (4, 32), "scales": (4, 256), "g_idx": (64,)}, {}),
        ({"qweight": (64, 256), "scales": (4, 256)}, {}),
        ({"qweight": (64, 256), "qzeros": (4, 32), "scales": (256,)}, {}),
        ({"qweight": (64, 256), "qzeros": (0, 0), "scales": (0, 0)}, {}),
    ],
)
def test_shapes_tell_the_layout_its_bits_and_its_sizes(parts, found):
    shapes = possible_shapes(tensors_of(**parts), "m")
    assert {
        layout: (s.bits, s.in_features, s.out_features, s.num_groups)
        for layout, s in shapes.items()
    } == found


@pytest.mark.parametrize(
    ("parts", "bits", "found"),
    [
        ({"weight_scale": (256, 4)}, 4, ("pack-quantized", 4, 4, False)),
        ({"weight_scale": (1,)}, 4, ("pack-quantized, one scale", 4, 1, False)),
        (
            {"weight_scale": (256, 4), "weight_zero_point": (32, 4)},
            8,
            ("pack-quantized, zero points", 4, 4, True),
        ),
        (
            {"weight_scale": (256, 4), "weight_g_idx": (512,)},
            8,
            ("pack-quantized", 4, 4, False),
        ),
    ],
)
def test_what_lies_beside_compressed_weights_tells_their_bits(parts, bits, found):
    tensors = tensors_of(weight_packed=(256, 64), **parts)
    shape = compressed_shape(tensors, "m", bits)
    assert (shape.layout, shape.bits, shape.num_groups, shape.is_certain) == found
    assert (shape.in_features, shape.out_features) == (64 * 32 // shape.bits, 256)


@pytest.mark.parametrize("scale", [(), (2,), (4, 256), (256, 0), (256, 4, 1)])
def test_scales_that_fit_no_weight_tell_nothing(scale):
    tensors = tensors_of(weight_packed=(256, 64), weight_scale=scale)
    assert compressed_shape(tensors, "m", 4) is None


def test_modules_are_named_whose_tensors_are_packed_in_any_layout():
    tensors = ["a.qweight", "b.weight_packed", "c.blocks", "d.weight", "a.qzeros"]
    assert packed_modules(tensors) == ("a", "b", "c")
