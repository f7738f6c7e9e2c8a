"""Weights as a checkpoint's files hold them, read again after the tensors were let go.

The self-test needs a dozen of them, one at a time: reading each anew takes less memory than keeping
any. Other formats bring a callable of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from safetensors import safe_open

from loaders.packed_tensors import PackedTensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from loaders.checkpoint import Checkpoint
    from loaders.quantization import Quantization

    # By a linear layer's name: its weight [out, in] float32 in the checkpoint's input order, or
    # None where the files have none by that name.
    ReferenceWeight: TypeAlias = Callable[[str], Tensor | None]


def stored_weights(checkpoint: Checkpoint, quantization: Quantization | None) -> ReferenceWeight:
    """Return what reads the weights of a safetensors checkpoint."""

    def weight_of(name: str) -> Tensor | None:
        if f"{name}.qweight" in checkpoint.tensors and quantization is not None:
            return _packed(checkpoint, quantization, name).dequantize()
        dense = _read(checkpoint, f"{name}.weight")
        return None if dense is None else dense.float()

    return weight_of


def _packed(checkpoint: Checkpoint, quantization: Quantization, name: str) -> PackedTensors:
    packed = quantization.format_of(name)
    qweight, qzeros, scales = (
        _read(checkpoint, f"{name}.{key}") for key in ("qweight", "qzeros", "scales")
    )
    if packed is None or qweight is None or qzeros is None or scales is None:
        raise ValueError(f"{name} was loaded as a packed layer, its tensors are not in the files")
    is_awq = packed.quant_method == "awq"
    return PackedTensors(
        name=name,
        format=packed,
        in_features=qweight.shape[0] if is_awq else qweight.shape[0] * 32 // packed.bits,
        out_features=scales.shape[1],
        qweight=qweight,
        qzeros=qzeros,
        scales=scales,
        g_idx=_read(checkpoint, f"{name}.g_idx"),
    )


def _read(checkpoint: Checkpoint, name: str) -> Tensor | None:
    info = checkpoint.tensors.get(name)
    if info is None:
        return None
    with safe_open(info.shard, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
