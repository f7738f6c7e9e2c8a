"""Weights as a checkpoint's files hold them, read again after the tensors were let go.

The self-test needs a dozen of them, one at a time: reading each anew takes less memory than keeping
any. Other formats bring a callable of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from loaders.model.packed_linear import packed_layers
from loaders.model.stored_tensors import tensor_reader
from loaders.quantization.layouts import layout_of
from loaders.quantization.packed_tensors import PackedTensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from loaders.model.opened import OpenedCheckpoint
    from loaders.model.packed_linear import PackedLinear
    from loaders.quantization.packed_format import PackedFormat

    # By a linear layer's name: its weight [out, in] float32 in the checkpoint's input order, or
    # None where the files have none by that name.
    ReferenceWeight: TypeAlias = Callable[[str], Tensor | None]


def stored_weights(opened: OpenedCheckpoint, model: nn.Module) -> ReferenceWeight:
    """Return what reads a checkpoint's weights, for the model that was loaded from it."""
    layers, read, quantization = packed_layers(model), tensor_reader(opened), opened.quantization

    def weight_of(name: str) -> Tensor | None:
        packed = None if quantization is None else quantization.format_of(name)
        if packed is not None and (layer := layers.get(name)) is not None:
            rules = layout_of(packed).rules(layer.in_features, layer.out_features)
            stored = {key: read(f"{name}.{key}") for key in rules}
            if any(tensor is not None for tensor in stored.values()):
                return _packed(name, packed, layer, stored).dequantize()
        dense = read(f"{name}.weight")
        return None if dense is None else dense.float()

    return weight_of


def _packed(
    name: str, packed: PackedFormat, layer: PackedLinear, stored: Mapping[str, Tensor | None]
) -> PackedTensors:
    return PackedTensors(
        name=name,
        format=packed,
        in_features=layer.in_features,
        out_features=layer.out_features,
        stored={key: tensor for key, tensor in stored.items() if tensor is not None},
    )
