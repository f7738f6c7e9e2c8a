"""What each piece of a checkpoint takes on a device once it is prepared, and which kernel runs it.

Read from tensor headers. The rules repeat, without PyTorch, what `loaders.kernels` decides and
keeps; tests hold both to the same answers. Sums are made in `loaders.device_memory`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loaders.checkpoint import GGML_BLOCKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loaders.accelerators import DeviceKind
    from loaders.checkpoint import TensorInfo
    from loaders.quantization import Quantization

Role = Literal["embedding", "head", "linear", "other"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d{1,5})\.")
_EMBEDDINGS = ("embed_tokens.weight", "token_embd.weight", "wte.weight", "embed_in.weight")
_HEADS = ("lm_head", "output", "embed_out")
_PACKED_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx", ".bias")
# Bits and group of GGUF's block types; every group gets a scale and a zero point.
GGUF_GROUPS = {
    "Q4_0": (4, 32), "Q4_1": (4, 32), "Q5_0": (5, 32), "Q5_1": (5, 32), "Q8_0": (8, 32),
    "Q2_K": (2, 16), "Q3_K": (3, 16), "Q4_K": (4, 32), "Q5_K": (5, 32), "Q6_K": (6, 16),
}  # fmt: skip
# What `int4_blocks`, `fp16pack` and `int8pack` pad and cut to.
_INT4_GROUPS = (256, 128, 64, 32)
_INT4_OUTPUTS = 64
_FP16_INPUTS = 512
_INT8_INPUTS = 32
# A weight that is unpacked for many rows: its level (1 byte), the packed bytes by input (1/2 or
# 1), both halves side by side (1), and bfloat16 (2).
_INT4_SCRATCH, _INT8_SCRATCH = 5, 2
# The reference's largest moment: code, zero point and difference in float32, or difference, scale
# and product.
_REFERENCE_SCRATCH = 12


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a model on its device: a linear layer, a table, a norm."""

    name: str
    block: int | None  # which decoder layer it belongs to; None outside them
    role: Role
    num_bytes: int  # kept on the device
    scratch_bytes: int = 0  # needed besides while it multiplies many rows
    kernel: str | None = None  # of a packed layer
    kernel_reason: str = ""


@dataclass(frozen=True, slots=True)
class PackedSize:
    """What the choice of a kernel and its memory follow from."""

    bits: int
    group_size: int  # -1 is the whole input dimension
    in_features: int
    out_features: int
    has_order: bool = False  # whether inputs are sorted by group, which takes a permutation

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        return self.in_features * self.out_features


def kernel_of(size: PackedSize, device: DeviceKind) -> tuple[str, str]:
    """Return the backend that `--backend auto` takes for such a layer, and why."""
    if device == "cuda":
        return "reference", "dequantises at every call: no faster kernel runs on CUDA yet"
    blocks_refuse = _refused_by_int4_blocks(size)
    is_one_group = size.group_size == -1 or size.group_size >= size.in_features
    if size.bits <= 4 and not blocks_refuse:
        return "int4pack", "PyTorch's int4 kernel takes up to 4 bits in groups of 32 to 256"
    if size.bits == 8 and is_one_group and size.in_features % _INT8_INPUTS == 0:
        return "int8pack", "PyTorch's int8 kernel takes 8 bits with one scale an output"
    if size.bits > 4 and not blocks_refuse:
        return "int4planes", "5 to 8 bits in groups run as two planes of PyTorch's int4 kernel"
    return "fp16pack", blocks_refuse or "no integer kernel takes it"


def _refused_by_int4_blocks(size: PackedSize) -> str | None:
    if size.in_features % _INT4_GROUPS[-1]:
        return f"no integer kernel takes {size.in_features} inputs: not a multiple of 32"
    if 0 < size.group_size < size.in_features and size.group_size % _INT4_GROUPS[-1]:
        return f"no integer kernel takes groups of {size.group_size}: not a multiple of 32"
    return None


def parts_of(
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization | None,
    device: DeviceKind,
    *,
    kernel: str | None = None,
) -> Iterator[Part]:
    """Yield every piece of a model as the device will hold it.

    kernel: the backend asked for by name; None takes each layer's own best.
    """
    is_tied = not any(_role(name) == "head" for name in tensors)
    for name, tensor in tensors.items():
        if name.endswith(".qweight"):
            yield _packed_part(name.removesuffix(".qweight"), tensors, quantization, device, kernel)
        elif not _belongs_to_packed(name, tensors):
            yield _plain_part(tensor, device, is_tied=is_tied, kernel=kernel)


def _belongs_to_packed(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    module, dot, _ = name.rpartition(".")
    return bool(dot) and name.endswith(_PACKED_PARTS) and f"{module}.qweight" in tensors


def _packed_part(
    module: str,
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization | None,
    device: DeviceKind,
    kernel: str | None,
) -> Part:
    stored = sum(
        tensors[module + part].num_bytes for part in _PACKED_PARTS[:-1] if module + part in tensors
    )
    size = _packed_size(module, tensors, quantization)
    if size is None:  # a layout whose shapes are not known here
        return Part(module, _block(module), _role(f"{module}.weight"), stored)
    chosen, reason = (kernel, "asked for") if kernel else kernel_of(size, device)
    kept = stored if chosen == "reference" else kernel_bytes(size, chosen)
    if f"{module}.bias" in tensors:
        kept += 4 * size.out_features
    scratch = scratch_bytes(size, chosen)
    return Part(module, _block(module), _role(f"{module}.weight"), kept, scratch, chosen, reason)


def _packed_size(
    module: str, tensors: Mapping[str, TensorInfo], quantization: Quantization | None
) -> PackedSize | None:
    packed = None if quantization is None else quantization.format_of(module)
    scales = tensors.get(f"{module}.scales")
    if quantization is None or packed is None or scales is None or len(scales.shape) != 2:
        return None
    rows, columns = (*tensors[f"{module}.qweight"].shape, 0, 0)[:2]
    # Codes lie along the inputs or along the outputs; their number is the same.
    in_features = rows * columns * 32 // packed.bits // max(1, scales.shape[1])
    has_order = quantization.desc_act and packed.group_size != -1
    return PackedSize(packed.bits, packed.group_size, in_features, scales.shape[1], has_order)


def kernel_bytes(size: PackedSize, kernel: str) -> int:
    """What a CPU kernel keeps of a layer."""
    inputs, outputs = size.in_features, size.out_features
    padded = -(-outputs // _INT4_OUTPUTS) * _INT4_OUTPUTS
    groups = inputs // _int4_group(size)
    order = 8 * inputs if size.has_order else 0
    if kernel == "int4pack":  # codes; scale and minimum in bfloat16
        return padded * inputs // 2 + groups * padded * 4 + order
    if kernel == "int4planes":  # the same for either half of a byte
        return padded * inputs + 2 * groups * padded * 4 + order
    if kernel == "int8pack":  # codes; scale and offset in float32, a unit scale in bfloat16
        return size.num_weights + 10 * outputs
    return fp16pack_bytes(inputs, outputs)


def _int4_group(size: PackedSize) -> int:
    """The largest group the int4 kernel takes that divides the layer's own."""
    own = size.in_features if size.group_size == -1 else size.group_size
    common = math.gcd(own, size.in_features)
    return next((group for group in _INT4_GROUPS if common % group == 0), _INT4_GROUPS[-1])


def fp16pack_bytes(in_features: int, out_features: int) -> int:
    """Two bytes a weight, inputs padded to what FBGEMM cuts."""
    return 2 * out_features * (-(-in_features // _FP16_INPUTS) * _FP16_INPUTS)


def scratch_bytes(size: PackedSize, kernel: str) -> int:
    """What unpacking a layer for many rows takes."""
    each = {
        "reference": _REFERENCE_SCRATCH,
        "int4pack": _INT4_SCRATCH,
        "int4planes": _INT4_SCRATCH,
        "int8pack": _INT8_SCRATCH,
    }
    return size.num_weights * each.get(kernel, 0)


def _plain_part(
    tensor: TensorInfo, device: DeviceKind, *, is_tied: bool, kernel: str | None
) -> Part:
    role, block = _role(tensor.name), _block(tensor.name)
    if role == "other" and len(tensor.shape) == 2 and tensor.name.endswith(".weight"):
        role = "linear"
    if tensor.dtype in GGUF_GROUPS and role in ("linear", "head"):
        return _gguf_part(tensor, role, device, kernel)
    if role == "embedding":
        kept = _embedding_bytes(tensor, device, is_tied=is_tied)
    else:
        kept = _dense_bytes(tensor, device, is_matrix=role in ("linear", "head"))
    return Part(tensor.name, block, role, kept)


def _gguf_part(tensor: TensorInfo, role: Role, device: DeviceKind, kernel: str | None) -> Part:
    bits, group = GGUF_GROUPS[tensor.dtype]
    outputs, inputs = (*tensor.shape, 1, 1)[:2]
    size = PackedSize(bits, group, inputs, outputs)
    chosen, reason = (kernel, "asked for") if kernel else kernel_of(size, device)
    if chosen == "reference":  # codes at their bits; scale and zero point in half precision
        kept = size.num_weights * bits // 8 + size.num_weights // group * 4
    else:
        kept = kernel_bytes(size, chosen)
    scratch = scratch_bytes(size, chosen)
    return Part(tensor.name, _block(tensor.name), role, kept, scratch, chosen, reason)


def _embedding_bytes(tensor: TensorInfo, device: DeviceKind, *, is_tied: bool) -> int:
    """On CPU a table that is stored as it is looked up stays in the file's pages.

    Only rows in use are resident then, and the system may drop them; a head tied to it is packed.
    """
    count = math.prod(tensor.shape)
    is_gguf = tensor.dtype in GGML_BLOCKS
    if device == "cuda":
        return 2 * count
    table = 2 * count if is_gguf else 0
    if not is_tied:
        return table
    if tensor.dtype in ("F32", "BF16"):  # one float32 table for both
        return 4 * count
    outputs, inputs = (*tensor.shape, 1, 1)[:2]
    return table + fp16pack_bytes(inputs, outputs)


def _dense_bytes(tensor: TensorInfo, device: DeviceKind, *, is_matrix: bool) -> int:
    """Half precision on CUDA; on CPU float32, but for matrices stored as fp16, which are packed.

    A bfloat16 matrix is packed too where half precision holds every value of it, which only the
    weights tell: counted as float32.
    """
    if tensor.dtype not in ("F16", "BF16", "F32") and tensor.dtype not in GGML_BLOCKS:
        return tensor.num_bytes
    count = math.prod(tensor.shape)
    if device == "cuda":
        return 2 * count
    if is_matrix and tensor.dtype == "F16":
        outputs, inputs = (*tensor.shape, 1, 1)[:2]
        return fp16pack_bytes(inputs, outputs)
    return 4 * count


def _block(name: str) -> int | None:
    match = _BLOCK.search(name)
    return int(match[1]) if match else None


def _role(name: str) -> Role:
    if name.endswith(_EMBEDDINGS):
        return "embedding"
    if _block(name) is None and name.partition(".")[0] in _HEADS:
        return "head"
    return "other"


def kernel_reason(parts: Sequence[Part]) -> str:
    """Say why the kernels of a model's layers were taken, each once."""
    reasons = [part.kernel_reason for part in parts if part.kernel_reason]
    if not reasons:
        return "nothing is packed"
    return "; ".join(dict.fromkeys(reasons))
