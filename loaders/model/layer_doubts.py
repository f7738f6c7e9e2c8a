"""Doubts packed layers that no quantizer makes of a whole checkpoint.

Codes that are all the same tell of a file that was lost in part, or never filled in. A bias where
config.json gives the layer none is added, as AutoGPTQ's own layers add it, but tells of a
config.json that is another model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import TensorError
from loaders.model.packed_linear import packed_layers
from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from loaders.model.packed_linear import PackedLinear


def doubt_layers(model: nn.Module) -> Iterator[Suspicion]:
    """Yield what is odd about a model's packed layers, once their kernels are prepared.

    Raises TensorError where all of them are constant.
    """
    # Dense layers that were packed as halves hold no codes, and have no format.
    layers = {n: layer for n, layer in packed_layers(model).items() if layer.format is not None}
    yield from _doubt_constant(layers)
    yield from _doubt_biases(layers)


def _doubt_constant(layers: Mapping[str, PackedLinear]) -> Iterator[Suspicion]:
    constant = [name for name, layer in layers.items() if layer.is_constant]
    if not constant:
        return
    if len(constant) == len(layers):
        raise TensorError(
            f"each of the {len(layers)} packed layers holds one value throughout, {constant[0]} the"
            " first; the weights were never filled in, or are lost: download them again"
        )
    yield Suspicion(
        "constant_layers",
        f"the packed codes of {', '.join(constant[:4])} are one value throughout"
        f" ({len(constant)} of {len(layers)} layers); their part of the file may be lost",
    )


def _doubt_biases(layers: Mapping[str, PackedLinear]) -> Iterator[Suspicion]:
    added = [
        f"{name}.bias"
        for name, layer in layers.items()
        if layer.bias is not None and not layer.expects_bias and not _is_gguf(layer)
    ]
    if added:
        yield Suspicion(
            "unexpected_bias",
            f"{', '.join(added[:4])} ({len(added)} of {len(layers)} layers) hold other values than"
            " zero, though the layers have no bias by config.json; they are added",
        )


def _is_gguf(layer: PackedLinear) -> bool:
    """Tell GGUF's layers: its metadata say nothing of biases, the tensors alone do."""
    return layer.format is not None and layer.format.quant_method == "gguf"
