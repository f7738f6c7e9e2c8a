"""Which kernel takes which packed layer, and what it cuts and pads to: the one rule for all.

The kernels (`loaders.model.kernels`) refuse by it and a plan (`loaders.memory.layers`) counts by
it, so what is planned is what is loaded. Without PyTorch, since a plan does without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loaders.quantization.plane_layout import FIELD_WIDTHS, MAX_FEW_ROWS, ROW_TILES
from native.masks import mask_of_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# As `/proc/cpuinfo` names them.
_BFLOAT16 = re.compile(r"^flags\b.*\b(?:avx512_bf16|amx_bf16)\b", re.MULTILINE)
# They keep a layer packed in their own way; the reference keeps it as it is stored.
CPU_KERNELS = ("int4pack", "int8pack", "int4planes", "fp16pack")
# Fastest first, measured on CPU (docs/decisions.md); the reference runs wherever no other does.
#
# GGUF's types: Q4_0, Q4_1 and Q4_K go to int4pack; Q5_0, Q5_1, Q5_K and Q8_0 to int4planes; those
# with groups of 16, Q2_K, Q3_K and Q6_K, to fp16pack. One core, µs for a 4096x4096 weight (eight
# of them in turn, so that none stays in the cache) at 1 row, and at 64 rows without tiles, 2026-11:
# int4pack g32 950 and 28 000, int4planes g32 1 870 and 51 000, fp16pack 1 630 and 27 000; for
# 1536x512, 108, 172 and 107 at 1 row. int4planes costs 15 % more than fp16pack at one row and
# takes 10 bits a weight, not 16. Groups of 16 on the int4 kernel, every second half of a block
# meeting zeros, would take 1 900 and 60 000 for 10 bits a weight (20 for Q6_K, at 4 900).
#
# On CUDA the Triton kernels take every layer; none was measured against another yet.
FASTEST_FIRST = (*CPU_KERNELS, "triton", "reference")

INT4_GROUP_SIZES = (256, 128, 64, 32)  # that PyTorch's int4 kernel takes, largest first
# Outputs are padded to whole blocks of the widest packing, so that no block has a layout of its
# own.
INT4_OUTPUT_MULTIPLE = 64
# PyTorch's int8 kernel reads past the end of rows whose length is no multiple of 16: NaN, or a
# crash (2.13, 2026-11). Twice that, to be sure of wider registers.
INT8_INPUT_MULTIPLE = 32
FP16_INPUT_MULTIPLE = 512  # FBGEMM pads inputs to it, so 576 of them take the memory of 1024

# Up to how many rows a kernel multiplies by packed weights; beyond, by those that it dequantises.
# The CPU's kernels find theirs at load, by measuring.
MAX_PACKED_ROWS: Mapping[str, int] = {"triton": MAX_FEW_ROWS, "reference": 0}
# Numbers of rows, each of which a kernel multiplies in a way of its own, beside those that all
# kernels are tried with: a few, and the self-test's prompt.
ROWS_OF_OTHER_WAYS: Mapping[str, tuple[int, ...]] = {
    "triton": (*ROW_TILES[1:], MAX_FEW_ROWS + 1),
}

# Tensor cores that multiply bfloat16, and copies to shared memory beside arithmetic.
TRITON_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class PackedSize:
    """What the choice of a kernel and its memory follow from."""

    bits: int
    group_size: int  # -1 is the whole input dimension
    in_features: int
    out_features: int
    has_order: bool = False  # whether inputs are sorted by group, which takes a permutation
    # Of each group and output, as the Triton kernels keep it: none where all are alike, two where
    # they are no whole numbers.
    zero_point_bytes: int = 1

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        return self.in_features * self.out_features

    @property
    def has_one_group(self) -> bool:
        """Whether each output has one scale for all its inputs."""
        return self.group_size == -1 or self.group_size >= self.in_features


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the choice of a kernel needs to know of a device."""

    kind: Literal["cpu", "cuda"]
    compute_capability: tuple[int, int] | None = None  # None: not known, or a CPU
    has_triton: bool = True
    # Of a CPU: whether it has instructions for products of bfloat16, so that none is in float32.
    has_bfloat16: bool = True

    @classmethod
    def of(cls, kind: Literal["cpu", "cuda"]) -> DeviceFacts:
        """Take a device of a kind as new enough, and its software as whole: what a plan does."""
        return cls(kind)


@cache
def has_triton() -> bool:
    """Whether Triton is installed here."""
    return find_spec("triton") is not None


@cache
def has_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 by itself, and oneDNN may use that."""
    return cpu_has_bfloat16(Path("/proc/cpuinfo"), environ)


def cpu_has_bfloat16(cpuinfo: Path, environment: Mapping[str, str]) -> bool:
    """Look it up as Linux tells it; where nothing is told, say no, for which plans keep more."""
    try:
        told = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    is_there = _BFLOAT16.search(told) is not None
    return is_there and mask_of_bfloat16(environment) is None


def fastest_kernel(size: PackedSize, device: DeviceFacts) -> str:
    """Name the kernel that `--backend auto` takes for such a layer."""
    return next(kernel for kernel in FASTEST_FIRST if refusal(kernel, size, device) is None)


def refusal(kernel: str, size: PackedSize, device: DeviceFacts) -> str | None:
    """Say why a kernel cannot run such a layer; None if it can."""
    return _REFUSALS[kernel](size, device)


def triton_refusal(device: DeviceFacts) -> str | None:
    """Say why a device runs none of Triton's kernels, whatever they compute; None if it can."""
    if device.kind != "cuda":
        return "runs on CUDA only"
    found = device.compute_capability
    if found is not None and found < TRITON_CAPABILITY:
        (major, minor), (least, rest) = found, TRITON_CAPABILITY
        return f"needs compute capability {least}.{rest}, this GPU has {major}.{minor}"
    return None if device.has_triton else "needs Triton, which this environment lacks"


def int4_misfit(size: PackedSize) -> Literal["inputs", "groups"] | None:
    """Name what of a layer int4 blocks cannot hold, whatever its bits; None if they can."""
    if size.in_features % INT4_GROUP_SIZES[-1]:
        return "inputs"
    if 0 < size.group_size < size.in_features and size.group_size % INT4_GROUP_SIZES[-1]:
        return "groups"
    return None


def int4_group_size(common: int) -> int | None:
    """Return the largest group of the int4 kernel that divides the layer's; None if none does.

    common: the largest size that divides all groups of the layer.
    """
    return next((size for size in INT4_GROUP_SIZES if common % size == 0), None)


def _refused_by_int4pack(size: PackedSize, device: DeviceFacts) -> str | None:
    if size.bits > 4:
        return f"holds at most 4 bits, the layer has {size.bits}"
    return _refused_by_int4_blocks(size, device)


def _refused_by_int4planes(size: PackedSize, device: DeviceFacts) -> str | None:
    if not 5 <= size.bits <= 8:
        return f"holds codes of 5 to 8 bits, the layer has {size.bits}"
    return _refused_by_int4_blocks(size, device)


def _refused_by_int4_blocks(size: PackedSize, device: DeviceFacts) -> str | None:
    if device.kind != "cpu":
        return "runs on CPU only"
    misfit, smallest = int4_misfit(size), INT4_GROUP_SIZES[-1]
    if misfit == "inputs":
        return f"needs inputs in multiples of {smallest}, the layer has {size.in_features}"
    if misfit == "groups":
        return f"needs groups in multiples of {smallest}, the layer has {size.group_size}"
    return None


def _refused_by_int8pack(size: PackedSize, device: DeviceFacts) -> str | None:
    if device.kind != "cpu":
        return "runs on CPU only"
    if size.bits != 8:
        return f"holds 8-bit codes, the layer has {size.bits}"
    if not size.has_one_group:
        return f"takes one scale an output, the layer has groups of {size.group_size}"
    if size.in_features % INT8_INPUT_MULTIPLE:
        return (
            f"needs inputs in multiples of {INT8_INPUT_MULTIPLE}, the layer has {size.in_features}"
        )
    return None


def _refused_by_fp16pack(size: PackedSize, device: DeviceFacts) -> str | None:  # noqa: ARG001
    return None if device.kind == "cpu" else "runs on CPU only"


def _refused_by_triton(size: PackedSize, device: DeviceFacts) -> str | None:
    if (refusal := triton_refusal(device)) is not None:
        return refusal
    if size.bits not in FIELD_WIDTHS:
        return f"holds codes of 2 to 8 bits, the layer has {size.bits}"
    return None


def _refused_by_reference(size: PackedSize, device: DeviceFacts) -> str | None:  # noqa: ARG001
    return None


_REFUSALS: Mapping[str, Callable[[PackedSize, DeviceFacts], str | None]] = {
    "int4pack": _refused_by_int4pack,
    "int8pack": _refused_by_int8pack,
    "int4planes": _refused_by_int4planes,
    "fp16pack": _refused_by_fp16pack,
    "triton": _refused_by_triton,
    "reference": _refused_by_reference,
}
