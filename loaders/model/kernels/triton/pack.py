"""Packs a grouped weight as the Triton kernels read it: planes of bytes, outputs side by side.

A code of 3, 5 or 6 bits is cut into a lower and an upper field, each kept in a plane of its own;
fields are 1, 2, 4 or 8 bits wide, so none crosses a byte. Inputs are cut into blocks, blocks into
slices, one for each field in a byte of the narrowest plane:

    narrowest plane, one block, 2 bits:  row s = fields of inputs  s, S + s, 2S + s, 3S + s
    wider plane beside it, 4 bits:       row s = fields of inputs  s, S + s
                                         row S + s = fields of     2S + s, 3S + s

So a kernel reads each byte once, and the activations that meet one field are a run of S inputs.
Plain PyTorch, on any device. The meta device holds no values: what they decide is answered there
as for numbers that are kept whole, which takes most memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import pad

from loaders.model.kernels.protocol import FLOAT16_ROUNDOFF
from loaders.quantization.plane_layout import PlaneLayout, padded_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from loaders.quantization.packed_tensors import GroupedWeight

# How zero points are kept: one for the whole layer, bytes, or floats.
Zeros = Literal["common", "whole", "float"]

_CODES_AT_ONCE = 2**22  # packed at a time, a few bytes each
_PIECES_OF_GROUPS = 8  # scales and zero points are looked at in so many
_LARGEST_BYTE = 255


@dataclass(frozen=True, slots=True)
class PackedPlanes:
    """One weight as the kernels read it."""

    layout: PlaneLayout
    low: Tensor  # [padded in * width / 8, padded out] uint8
    high: Tensor | None  # the same of the upper fields
    # float16, in which GPTQ and AWQ store them, so those are exact. GGUF's round once, as
    # activations do: float32 would take up to a bit a weight more. float32 where half precision
    # loses more.
    scales: Tensor  # [groups, padded out]
    # [groups, padded out]: bytes, or as scales where they are no whole numbers; None where one is
    # common to all.
    zeros: Tensor | None
    common_zero: int  # where `zeros` is None
    in_features: int
    out_features: int
    group_size: int  # inputs a group; the last one may hold fewer
    is_exact: bool  # whether neither scales nor zero points were rounded

    @property
    def padded_out(self) -> int:
        """Outputs with those that fill the last tile."""
        return self.low.shape[1]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return self.scales.shape[0]

    @property
    def num_blocks(self) -> int:
        """Number of blocks of inputs, the last one padded."""
        return self.layout.num_blocks(self.in_features)

    @property
    def zeros_kind(self) -> Zeros:
        """How zero points are kept."""
        if self.zeros is None:
            return "common"
        return "whole" if self.zeros.dtype == torch.uint8 else "float"

    @property
    def tensors(self) -> list[Tensor]:
        """All that is kept."""
        kept = (self.low, self.high, self.scales, self.zeros)
        return [tensor for tensor in kept if tensor is not None]


def pack(weight: GroupedWeight) -> PackedPlanes:
    """Pack a weight, a few outputs at a time."""
    group_size = min(weight.group_size, weight.in_features)
    layout = PlaneLayout.of(weight.bits, group_size, weight.in_features)
    padded_in = layout.num_blocks(weight.in_features) * layout.block_inputs
    padded_out, device = padded_outputs(weight.out_features), weight.codes.device
    planes = [
        torch.zeros(padded_in * width // 8, padded_out, dtype=torch.uint8, device=device)
        for width in layout.widths
    ]
    at_once = max(_CODES_AT_ONCE // padded_in, 1)
    for start in range(0, weight.out_features, at_once):
        codes = weight.codes[start : start + at_once]
        by_input = pad(codes, (0, padded_in - weight.in_features)).t()
        shift = 0
        for plane, width in zip(planes, layout.widths, strict=True):
            packed = _pack_fields(by_input, layout, width, shift)
            plane[:, start : start + len(codes)] = packed
            shift += width
    zeros, common_zero = _kept_zeros(weight.zeros)
    scales = _narrowed(weight.scales)
    extra = padded_out - weight.out_features
    return PackedPlanes(
        layout=layout,
        low=planes[0],
        high=planes[1] if len(planes) > 1 else None,
        scales=pad(scales, (0, extra)).contiguous(),
        zeros=None if zeros is None else pad(zeros, (0, extra)).contiguous(),
        common_zero=common_zero,
        in_features=weight.in_features,
        out_features=weight.out_features,
        group_size=group_size,
        is_exact=_is_equal(scales, weight.scales)
        and (zeros is None or _is_equal(zeros, weight.zeros)),
    )


def _pack_fields(by_input: Tensor, layout: PlaneLayout, width: int, shift: int) -> Tensor:
    """Pack one field of codes [padded in, some outputs]: [padded in * width / 8, outputs]."""
    in_byte, size = 8 // width, layout.slice_inputs
    fields = by_input.reshape(-1, layout.num_slices // in_byte, in_byte, size, by_input.shape[1])
    mask = 2**width - 1
    packed: Tensor = (fields[:, :, 0] >> shift) & mask
    for place in range(1, in_byte):
        packed |= ((fields[:, :, place] >> shift) & mask) << (place * width)
    return packed.flatten(0, 2)


def _narrowed(values: Tensor) -> Tensor:
    """Round to float16, unless that is off by more than a rounding of float16's usual numbers.

    Numbers far below the others may be off by what is a rounding of a sixteenth of their mean.
    """
    smallest = torch.linalg.vector_norm(values, 1) / values.numel() / 16
    narrow = values.half()
    is_close = all(
        _is_true((kept.float() - exact).abs() <= FLOAT16_ROUNDOFF * exact.abs().clamp(min=smallest))
        for kept, exact in _in_pieces(narrow, values)
    )
    return narrow if is_close else values


def _is_equal(kept: Tensor, exact: Tensor) -> bool:
    pieces = _in_pieces(kept, exact)
    return all(_is_true(piece.to(exact.dtype) == own) for piece, own in pieces)


def _is_true(condition: Tensor) -> bool:
    """Whether it holds everywhere; waits for the device."""
    return not condition.is_meta and bool(condition.all())


def _in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of as many groups alike: in groups of 16 a float32 more takes a byte in four."""
    size = max(len(tensors[0]) // _PIECES_OF_GROUPS, 1)
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def _kept_zeros(zeros: Tensor) -> tuple[Tensor | None, int]:
    """Return zero points as bytes where these hold them; none where all are the one returned."""
    kind = _kind_of(zeros)
    if kind == "common":
        return None, int(zeros.flatten()[0])
    return (zeros.to(torch.uint8) if kind == "whole" else _narrowed(zeros)), 0


def _kind_of(zeros: Tensor) -> Zeros:
    """Look in which way zero points can be kept."""
    first = zeros.flatten()[0]
    if not (_is_true(zeros == zeros.round()) and _is_true(zeros >= 0)):
        return "float"
    if _is_true(zeros == first) and _is_true(first <= _LARGEST_BYTE + 1):
        return "common"
    return "whole" if _is_true(zeros.max() <= _LARGEST_BYTE) else "float"


def unpack(planes: PackedPlanes) -> Tensor:
    """Return the codes, [in, out] uint8: the reference of how kernels read planes."""
    codes = _unpack_fields(planes.low, planes.layout, planes.layout.widths[0])
    if planes.high is not None:
        upper = _unpack_fields(planes.high, planes.layout, planes.layout.widths[1])
        codes |= upper << planes.layout.widths[0]
    real: Tensor = codes[: planes.in_features, : planes.out_features]
    return real


def _unpack_fields(plane: Tensor, layout: PlaneLayout, width: int) -> Tensor:
    """Read one field of all codes: [padded in, padded out]."""
    in_byte = 8 // width
    rows = plane.view(-1, layout.num_slices // in_byte, 1, layout.slice_inputs, plane.shape[1])
    shifts = torch.arange(in_byte, dtype=torch.uint8, device=plane.device) * width
    fields: Tensor = (rows >> shifts.view(-1, 1, 1)) & (2**width - 1)
    return fields.flatten(0, 3)


def dequantized(planes: PackedPlanes) -> Tensor:
    """Return the weight, [in, out] float32: what both kernels are held to."""
    groups = torch.arange(planes.in_features, device=planes.low.device) // planes.group_size
    levels = unpack(planes).float()
    if planes.zeros is None:
        levels -= planes.common_zero
    else:
        levels -= planes.zeros[:, : planes.out_features].float()[groups]
    return levels * planes.scales[:, : planes.out_features].float()[groups]
