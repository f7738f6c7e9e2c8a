"""Says what of a packed layer's stored tensors belongs to some of its outputs.

From the layout's rules alone, for whoever reads or unpacks a part of a layer. Outputs are cut
between whole words: at multiples of `OUTPUTS_OF_WHOLE_WORDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from types import EllipsisType

    from loaders.quantization.layouts.protocol import Layout

    # What of a tensor is read: all of it, or a range in each of its dimensions.
    Cut: TypeAlias = EllipsisType | slice | tuple[slice, ...]

# As many codes fill whole words, of whatever bits.
OUTPUTS_OF_WHOLE_WORDS = 32


def output_cuts(
    layout: Layout, in_features: int, out_features: int, start: int, stop: int
) -> dict[str, Cut]:
    """Say what of each tensor belongs to some outputs: a range of the dimension that they count."""
    of_part = layout.rules(in_features, stop - start)
    cuts: dict[str, Cut] = {}
    for key, rule in layout.rules(in_features, out_features).items():
        sizes = zip(rule.shape, of_part[key].shape, strict=True)
        cuts[key] = tuple(
            slice(None) if whole == part else _range(whole * start // out_features, part)
            for whole, part in sizes
        )
    return cuts


def _range(first: int, size: int) -> slice:
    return slice(first, first + size)
