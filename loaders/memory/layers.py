"""What each piece of a checkpoint takes on a device once it is prepared, and which kernel runs it.

Read from tensor headers. Which kernel takes a layer is said in `loaders.quantization.kernel_rules`;
what each keeps is repeated here, without PyTorch, and tests hold it to the kernels. Sums are made
in `loaders.memory.device`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from loaders.checkpoint.files import GGML_BLOCKS
from loaders.quantization.kernel_rules import (
    CPU_KERNELS,
    FP16_INPUT_MULTIPLE,
    INT4_GROUP_SIZES,
    INT4_OUTPUT_MULTIPLE,
    MAX_PACKED_ROWS,
    DeviceFacts,
    PackedSize,
    fastest_kernel,
    int4_group_size,
    int4_misfit,
    refusal,
)
from loaders.quantization.packed_format import GGUF_GROUPS
from loaders.quantization.plane_layout import (
    MAX_FEW_ROWS,
    USUAL_MULTIPROCESSORS,
    WIDEST_ITEM,
    PlaneLayout,
    Split,
    num_locks,
    padded_outputs,
    piece_outputs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loaders.checkpoint.files import TensorInfo
    from loaders.memory.engine_defaults import DeviceKind
    from loaders.quantization.quantization import Quantization

Role = Literal["embedding", "head", "linear", "other"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d{1,5})\.")
_EMBEDDINGS = ("embed_tokens.weight", "token_embd.weight", "wte.weight", "embed_in.weight")
_HEADS = ("lm_head", "output", "embed_out")
# The tensor that only a packed layer has → all that such a layer may have.
_PACKED_PARTS = {
    "qweight": ("qweight", "qzeros", "scales", "g_idx"),
    "blocks": ("blocks", "rows"),
    "weight_packed": (
        "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
    ),
}  # fmt: skip
# A weight that is unpacked for many rows: its level (1 byte), the packed bytes by input (1/2 or
# 1), both halves side by side (1), and bfloat16 (2). Kernels in C++ unpack a few outputs at a time,
# and need next to nothing; a plan does not know whether they are there.
_INT4_SCRATCH, _INT8_SCRATCH = 5, 2
# Where products are in float32 instead, because the CPU has no instructions for bfloat16.
_FLOAT32_MORE = 2
# The reference's largest moment: levels and looked up zero points in float32, and change. Measured
# on CPU for 8192 x 8192, 2026-11: 8.2 with act order, 5.1 to 5.8 for GGUF's types.
_REFERENCE_SCRATCH = 9
# Of a zero point, as the Triton kernels keep it: some types have the same everywhere, the others'
# are no whole numbers.
_GGUF_ZERO_BYTES = {
    "Q4_0": 0, "Q4_1": 2, "Q5_0": 0, "Q5_1": 2, "Q8_0": 0,
    "Q2_K": 2, "Q3_K": 0, "Q4_K": 2, "Q5_K": 2, "Q6_K": 0,
}  # fmt: skip
_SCALE_BYTES = 2
# Why a kernel is the fastest for a layer.
_REASONS = {
    "int4pack": "PyTorch's int4 kernel takes up to 4 bits in groups of 32 to 256",
    "int8pack": "PyTorch's int8 kernel takes 8 bits with one scale an output",
    "int4planes": "{bits} bits run as two planes of PyTorch's int4 kernel",
    "triton": (
        "Triton's kernels take 2 to 8 bits in any groups: packed up to"
        f" {MAX_FEW_ROWS} rows, from {MAX_FEW_ROWS + 1} on dequantised in pieces for cuBLAS"
    ),
}


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


def facts_of(device: DeviceKind | DeviceFacts) -> DeviceFacts:
    """Take a kind alone as a device of today, whose software is whole."""
    return DeviceFacts.of(device) if isinstance(device, str) else device


def kernel_of(size: PackedSize, device: DeviceKind | DeviceFacts) -> tuple[str, str]:
    """Return the backend that `--backend auto` takes for such a layer, and why."""
    facts = facts_of(device)
    kernel = fastest_kernel(size, facts)
    if kernel == "fp16pack":
        return kernel, _why_no_integer_kernel(size)
    if kernel == "reference":
        return kernel, f"dequantises at every call, slowly: triton {refusal('triton', size, facts)}"
    return kernel, _REASONS[kernel].format(bits=size.bits)


def _why_no_integer_kernel(size: PackedSize) -> str:
    smallest = INT4_GROUP_SIZES[-1]
    if int4_misfit(size) == "inputs":
        return f"no integer kernel takes {size.in_features} inputs: not a multiple of {smallest}"
    return f"no integer kernel takes groups of {size.group_size}: not a multiple of {smallest}"


def parts_of(
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization | None,
    device: DeviceKind | DeviceFacts,
    *,
    kernel: str | None = None,
) -> Iterator[Part]:
    """Yield every piece of a model as the device will hold it.

    kernel: the backend asked for by name; None takes each layer's own best.
    """
    facts = facts_of(device)
    is_tied = not any(_role(name) == "head" for name in tensors)
    is_gguf = any(name.endswith(".blocks") for name in tensors)
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last in _PACKED_PARTS:
            yield _packed_part(module, last, tensors, quantization, facts, kernel)
        elif _belongs_to_packed(module, last, tensors):
            continue
        elif _role(name) == "embedding":
            yield _embedding(tensor, facts.kind, is_tied=is_tied, is_widened=is_gguf)
            if is_tied and tensor.dtype in GGUF_GROUPS:  # the head is made of the same blocks
                yield _blocks_part(tensor, "head", facts, kernel)
        elif tensor.dtype in GGUF_GROUPS:
            yield _blocks_part(tensor, _role(name), facts, kernel)
        else:
            yield _dense_part(tensor, facts.kind)


def _belongs_to_packed(module: str, last: str, tensors: Mapping[str, TensorInfo]) -> bool:
    return any(
        f"{module}.{marker}" in tensors
        for marker, parts in _PACKED_PARTS.items()
        if last in (*parts, "bias")
    )


def _packed_part(
    module: str,
    marker: str,
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization | None,
    device: DeviceFacts,
    kernel: str | None,
) -> Part:
    names = [f"{module}.{part}" for part in _PACKED_PARTS[marker]]
    stored = sum(tensors[name].num_bytes for name in names if name in tensors)
    size = _packed_size(module, marker, tensors, quantization)
    if size is None:  # settings and shapes say nothing that is known here
        return Part(module, _block(module), _role(f"{module}.weight"), stored)
    part = _part(module, _role(f"{module}.weight"), size, stored, device, kernel)
    if f"{module}.bias" in tensors:  # kept in float32
        part = replace(part, num_bytes=part.num_bytes + 4 * size.out_features)
    return part


def _part(
    name: str, role: Role, size: PackedSize, stored: int, device: DeviceFacts, kernel: str | None
) -> Part:
    """Describe a packed layer; other libraries' kernels, too, keep it about as it is stored."""
    chosen, reason = (kernel, "asked for") if kernel else kernel_of(size, device)
    kept = kernel_bytes(size, chosen) if chosen in (*CPU_KERNELS, "triton") else stored
    scratch = scratch_bytes(size, chosen, has_bfloat16=device.has_bfloat16)
    return Part(name, _block(name), role, kept, scratch, chosen, reason)


def _packed_size(
    module: str,
    marker: str,
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization | None,
) -> PackedSize | None:
    packed = None if quantization is None else quantization.format_of(module)
    codes = tensors[f"{module}.{marker}"]
    if quantization is None or packed is None:
        return None
    out_features = _num_outputs(module, marker, packed.checkpoint_format, tensors)
    if not out_features:
        return None
    if marker == "blocks":
        if packed.checkpoint_format not in GGML_BLOCKS:
            return None
        weights, num_bytes = GGML_BLOCKS[packed.checkpoint_format]
        num_weights = codes.num_bytes // num_bytes * weights
    else:  # packed along the inputs or along the outputs; their number is the same
        num_weights = codes.num_bytes * 8 // packed.bits
    has_order = quantization.desc_act and packed.group_size != -1
    in_features = num_weights // out_features
    # Added one to, the first format's zero points of 8 bits may be 256, which takes no byte; what
    # they are, headers don't tell.
    may_pass_a_byte = packed.checkpoint_format == "gptq" and packed.bits == 8
    usual = 0 if quantization.sym else 2 if may_pass_a_byte else 1
    return PackedSize(
        packed.bits,
        packed.group_size,
        in_features,
        out_features,
        has_order,
        _GGUF_ZERO_BYTES.get(packed.checkpoint_format, usual),
    )


def _num_outputs(module: str, marker: str, layout: str, tensors: Mapping[str, TensorInfo]) -> int:
    """Find where a layout says how many outputs there are; 0 where it does not."""
    # GEMV's scales lie by output, too.
    by_output = marker != "qweight" or layout == "gemv"
    tensor = tensors.get(f"{module}.{marker if by_output else 'scales'}")
    if tensor is None or len(tensor.shape) != 2:
        return 0
    return tensor.shape[0 if by_output else 1]


def kernel_bytes(size: PackedSize, kernel: str) -> int:
    """What a kernel keeps of a layer that it packs in its own way."""
    if kernel == "triton":
        return _planes_bytes(size)
    inputs, outputs = size.in_features, size.out_features
    padded = -(-outputs // INT4_OUTPUT_MULTIPLE) * INT4_OUTPUT_MULTIPLE
    groups = inputs // _int4_group(size)
    order = 8 * inputs if size.has_order else 0
    if kernel == "int4pack":  # codes; scale and minimum in bfloat16
        return padded * inputs // 2 + groups * padded * 4 + order
    if kernel == "int4planes":  # the same for either half of a byte
        return padded * inputs + 2 * groups * padded * 4 + order
    if kernel == "int8pack":  # codes; scale and offset in float32, a unit scale in bfloat16
        return size.num_weights + 10 * outputs
    return fp16pack_bytes(inputs, outputs)


def _planes_bytes(size: PackedSize) -> int:
    """Planes, scales, zero points and order of a layer for the Triton kernels."""
    inputs, padded_out = size.in_features, padded_outputs(size.out_features)
    layout = PlaneLayout.of(size.bits, size.group_size, inputs)
    padded_in = layout.num_blocks(inputs) * layout.block_inputs
    groups = 1 if size.has_one_group else -(-inputs // size.group_size)
    return (
        padded_in * padded_out * sum(layout.widths) // 8
        + groups * padded_out * (_SCALE_BYTES + size.zero_point_bytes)
        + (8 * inputs if size.has_order else 0)
    )


def _planes_scratch(size: PackedSize) -> int:
    """A piece, split sums and locks: of up to three such layers, which may be joined."""
    found = [_workspace_bytes(size, joined * size.out_features) for joined in (1, 2, 3)]
    return max(found)


def _workspace_bytes(size: PackedSize, out_features: int) -> int:
    inputs, padded_out = size.in_features, padded_outputs(out_features)
    layout = PlaneLayout.of(size.bits, size.group_size, inputs)
    split = Split.of(layout.num_blocks(inputs), padded_out, USUAL_MULTIPROCESSORS)
    piece = piece_outputs(inputs, padded_out, WIDEST_ITEM) * inputs * WIDEST_ITEM
    return piece + 4 * split.num_partials(padded_out) + 4 * num_locks(padded_out)


def _int4_group(size: PackedSize) -> int:
    """The largest group the int4 kernel takes that divides the layer's own."""
    own = size.in_features if size.group_size == -1 else size.group_size
    return int4_group_size(math.gcd(own, size.in_features)) or INT4_GROUP_SIZES[-1]


def fp16pack_bytes(in_features: int, out_features: int) -> int:
    """Two bytes a weight, inputs padded to what FBGEMM cuts."""
    return 2 * out_features * (-(-in_features // FP16_INPUT_MULTIPLE) * FP16_INPUT_MULTIPLE)


def scratch_bytes(size: PackedSize, kernel: str, *, has_bfloat16: bool = True) -> int:
    """What multiplying by a layer takes besides: mostly what is unpacked for many rows.

    has_bfloat16: as in `DeviceFacts`.
    """
    if kernel == "triton":
        return _planes_scratch(size)
    more = 0 if has_bfloat16 else _FLOAT32_MORE
    each = {
        "reference": _REFERENCE_SCRATCH,
        "int4pack": _INT4_SCRATCH + more,
        "int4planes": _INT4_SCRATCH + more,
        "int8pack": _INT8_SCRATCH + more,
    }
    return size.num_weights * each.get(kernel, 0)


def _blocks_part(tensor: TensorInfo, role: Role, device: DeviceFacts, kernel: str | None) -> Part:
    """Describe a GGUF layer under its own name."""
    bits, group = GGUF_GROUPS[tensor.dtype]
    outputs, inputs = (*tensor.shape, 1, 1)[:2]
    size = PackedSize(bits, group, inputs, outputs, zero_point_bytes=_GGUF_ZERO_BYTES[tensor.dtype])
    return _part(tensor.name, role, size, tensor.num_bytes, device, kernel)


def _embedding(tensor: TensorInfo, device: DeviceKind, *, is_tied: bool, is_widened: bool) -> Part:
    """Describe the embedding, and the head where both are one tensor of floats.

    On CPU a table that is stored as it is looked up stays in the file's pages: only rows in use
    are resident then, and the system may drop them. Blocks of GGUF's are widened to half precision.
    """
    outputs, inputs = (*tensor.shape, 1, 1)[:2]
    count = outputs * inputs
    is_blocks = tensor.dtype in GGUF_GROUPS
    if device == "cuda":
        kept = 2 * count
    elif is_tied and tensor.dtype in ("F32", "BF16"):  # one float32 table for both
        kept = 4 * count
    else:
        kept = 2 * count if is_blocks or is_widened else 0
        if is_tied and not is_blocks:
            kept += fp16pack_bytes(inputs, outputs)
    return Part(tensor.name, _block(tensor.name), "embedding", kept)


def _dense_part(tensor: TensorInfo, device: DeviceKind) -> Part:
    """Half precision on CUDA; on CPU float32, but for matrices stored as fp16, which are packed.

    A bfloat16 matrix is packed too where half precision holds every value of it, which only the
    weights tell: counted as float32.
    """
    name, role = tensor.name, _role(tensor.name)
    outputs, inputs = (*tensor.shape, 1, 1)[:2]
    is_matrix = len(tensor.shape) == 2 and name.endswith(".weight")
    if tensor.dtype not in ("F16", "BF16", "F32"):
        kept = tensor.num_bytes
    elif device == "cuda":
        kept = 2 * math.prod(tensor.shape)
    elif is_matrix and tensor.dtype == "F16":
        kept = fp16pack_bytes(inputs, outputs)
    else:
        kept = 4 * math.prod(tensor.shape)
    return Part(name, _block(name), "linear" if is_matrix and role == "other" else role, kept)


def _block(name: str) -> int | None:
    match = _BLOCK.search(name)
    return int(match[1]) if match else None


def _role(name: str) -> Role:
    if name.endswith(_EMBEDDINGS):
        return "embedding"
    if _block(name) is None and name.partition(".")[0] in _HEADS:
        return "head"
    return "other"


@dataclass(frozen=True, slots=True)
class KernelUse:
    """What one kernel runs of a model, and why."""

    kernel: str
    num_layers: int  # linear layers
    reasons: tuple[str, ...]
    max_packed_rows: int | None  # above them a step dequantises; None: one way for any number


def kernels_used(parts: Sequence[Part]) -> tuple[KernelUse, ...]:
    """Say which kernels run a model's packed layers, that with most layers first."""
    names = [part.kernel for part in parts if part.kernel is not None]
    return tuple(
        KernelUse(
            kernel=name,
            num_layers=names.count(name),
            reasons=tuple(
                dict.fromkeys(part.kernel_reason for part in parts if part.kernel == name)
            ),
            max_packed_rows=MAX_PACKED_ROWS.get(name),
        )
        for name in sorted(dict.fromkeys(names), key=lambda name: -names.count(name))
    )


def kernel_reason(parts: Sequence[Part]) -> str:
    """Say why the kernels of a model's layers were taken, each once."""
    reasons = [part.kernel_reason for part in parts if part.kernel_reason]
    if not reasons:
        return "nothing is packed"
    return "; ".join(dict.fromkeys(reasons))
