"""Doubts packed layers whose codes are all the same: no quantizer gives that, a lost file does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import TensorError
from loaders.model.packed_linear import packed_layers
from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def doubt_constant_layers(model: nn.Module) -> Iterator[Suspicion]:
    """Yield a suspicion where a few layers are constant; raise TensorError where all are.

    The layers' kernels must have been prepared.
    """
    # Dense layers that were packed as halves hold no codes, and have no format.
    layers = {n: layer for n, layer in packed_layers(model).items() if layer.format is not None}
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
