"""Tells from the shapes of one layer's packed tensors in which layout they are, and of which size.

    layout      qweight             qzeros                scales
    gptq        [in * bits/32, out] [groups, out*bits/32] [groups, out]
    gemm        [in, out/8]         [groups, out/8]       [groups, out]
    gemv        [out, in/8]         [out, words]          [out, 8 * words]
    gemv_fast   [out/4, in] int16   [8 * words, out]      [8 * words, out]

compressed-tensors has weight_packed [out, in * bits/32] and weight_scale [out, groups] or [1]; only
zero points [out * bits/32, groups] or a group index [in] beside them tell its bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.quantization.layouts import PACKED_ENDINGS
from loaders.quantization.layouts.compressed_tensors import PackQuantized
from loaders.quantization.packing import GPTQ_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from loaders.checkpoint.files import TensorInfo


@dataclass(frozen=True, slots=True)
class StoredShape:
    """A layer's packed tensors, read as being of one layout."""

    layout: str  # "gptq" in either version, "gemm", "gemv", "gemv_fast" or one of `PackQuantized`
    bits: int
    in_features: int
    out_features: int
    num_groups: int  # as stored; the GEMV versions store more than there are
    is_certain: bool  # whether two tensors agree on bits and groups, none of which is then damaged


def packed_modules(tensors: Iterable[str]) -> tuple[str, ...]:
    """Name the modules that hold packed tensors of any layout."""
    return tuple(
        sorted(name.rpartition(".")[0] for name in tensors if name.endswith(PACKED_ENDINGS))
    )


def possible_shapes(tensors: Mapping[str, TensorInfo], module: str) -> dict[str, StoredShape]:
    """Return each layout of GPTQ's and AWQ's that the shapes of a module's tensors can be."""
    shapes = _shapes_of(tensors, module, ("qweight", "qzeros", "scales"))
    if shapes is None or any(len(shape) != 2 or 0 in shape for shape in shapes):
        return {}
    is_fast = tensors[f"{module}.qweight"].dtype == "I16"
    readers = (_as_gemv_fast,) if is_fast else (_as_gptq, _as_gemm, _as_gemv)
    found = [read(*shapes) for read in readers]
    return {
        shape.layout: shape
        for shape in found
        if shape is not None and _fits_order(tensors.get(f"{module}.g_idx"), shape)
    }


def compressed_shape(
    tensors: Mapping[str, TensorInfo], module: str, bits: int
) -> StoredShape | None:
    """Read a module of compressed-tensors; None where a tensor lacks or shapes make no sense.

    bits: what settings say, taken where no tensor tells.
    """
    shapes = _shapes_of(tensors, module, ("weight_packed", "weight_scale"))
    if shapes is None or len(shapes[0]) != 2 or 0 in shapes[0]:
        return None
    (out_features, words), scale = shapes
    zero_points = tensors.get(f"{module}.weight_zero_point")
    order = tensors.get(f"{module}.weight_g_idx")
    if scale == (1,):
        layout, num_groups = PackQuantized.ONE_SCALE, 1
    elif len(scale) == 2 and scale[0] == out_features and scale[1] > 0:
        layout, num_groups = PackQuantized.SYMMETRIC, scale[1]
    else:
        return None
    is_certain = False
    if zero_points is not None:
        layout = PackQuantized.ZERO_POINTS
        is_certain = len(zero_points.shape) == 2 and zero_points.shape[1] == num_groups
        bits = zero_points.shape[0] * 32 // out_features if is_certain else bits
    elif order is not None and len(order.shape) == 1 and order.shape[0] > 0:
        bits = words * 32 // order.shape[0]
    if not 1 <= bits <= 8:
        return None
    in_features = words * 32 // bits
    return StoredShape(layout, bits, in_features, out_features, num_groups, is_certain)


def _shapes_of(
    tensors: Mapping[str, TensorInfo], module: str, keys: tuple[str, ...]
) -> list[tuple[int, ...]] | None:
    found = [tensors.get(f"{module}.{key}") for key in keys]
    return None if None in found else [info.shape for info in found if info is not None]


def _fits_order(g_idx: TensorInfo | None, shape: StoredShape) -> bool:
    return g_idx is None or shape.layout != "gptq" or g_idx.shape == (shape.in_features,)


def _as_gptq(
    qweight: tuple[int, ...], qzeros: tuple[int, ...], scales: tuple[int, ...]
) -> StoredShape | None:
    num_groups, out_features = scales
    bits, rest = divmod(32 * qzeros[1], out_features)
    if rest or bits not in GPTQ_BITS or qweight[1] != out_features or qzeros[0] != num_groups:
        return None
    in_features, rest = divmod(32 * qweight[0], bits)
    if rest:
        return None
    return StoredShape("gptq", bits, in_features, out_features, num_groups, is_certain=True)


def _as_gemm(
    qweight: tuple[int, ...], qzeros: tuple[int, ...], scales: tuple[int, ...]
) -> StoredShape | None:
    num_groups, out_features = scales
    if qweight[1] * 8 != out_features or qzeros != (num_groups, qweight[1]):
        return None
    return StoredShape("gemm", 4, qweight[0], out_features, num_groups, is_certain=True)


def _as_gemv(
    qweight: tuple[int, ...], qzeros: tuple[int, ...], scales: tuple[int, ...]
) -> StoredShape | None:
    out_features, num_groups = scales
    if qweight[0] != out_features or qzeros[0] != out_features or qzeros[1] * 8 != num_groups:
        return None
    return StoredShape("gemv", 4, qweight[1] * 8, out_features, num_groups, is_certain=True)


def _as_gemv_fast(
    qweight: tuple[int, ...], qzeros: tuple[int, ...], scales: tuple[int, ...]
) -> StoredShape | None:
    num_groups, out_features = scales
    if qweight[0] * 4 != out_features or qzeros != scales:
        return None
    return StoredShape("gemv_fast", 4, qweight[1], out_features, num_groups, is_certain=True)
