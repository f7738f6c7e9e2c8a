"""Damage to layers in memory, as a fault of the memory or of a kernel would do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.layers.weights import LinearsInUse


def kernels_in_use(linears: Iterable[LinearsInUse], name: str) -> tuple[Any, int]:
    """The kernel that multiplies by a layer, and the first of its outputs that is the layer's."""
    for one in linears:
        if name in one.names:
            joined: Any = one.multiply
            weights = joined._weights if hasattr(joined, "_weights") else [joined]
            index = one.names.index(name)
            if len(weights) > 1:
                return weights[index].kernel, 0
            return weights[0].kernel, sum(one.sizes[:index])
    raise LookupError(name)


def scale_one_group(linears: Iterable[LinearsInUse], name: str, factor: float) -> None:
    """Change the scales of one group of a layer's first output; of `int4pack` and `int4planes`."""
    kernel, first = kernels_in_use(linears, name)
    kernel._scales_and_minima[1, first] *= factor
