"""Whether a part of a packed layer was lost: overwritten on disk, or never filled in.

What is looked for does not happen to weights that were quantised, pruned or padded: codes of one
value that is not the zero point, codes that vary beside scales that are zero, and a group of inputs
that is far larger or smaller than the layer's others. In the demo's branches
a group is at most 2.5 times and at least 0.16 of its layer's middle one (2026-11); bounds are wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.model.plausibility.sampling import LayerSample

# A dead or padded input has codes at the zero point, or beside it where that is a fraction.
AT_ZERO = 0.75
# Fewer codes than these may be alike by chance.
FEWEST_INPUTS = 16  # as many as the smallest groups have
FEWEST_OUTPUTS = 4
LARGEST_GROUP = 20.0
SMALLEST_GROUP = 1 / 30
_NAMED = 3  # layers, in a message


@dataclass(frozen=True, slots=True)
class LayerParts:
    """How the parts of one layer's sample compare."""

    name: str
    constant_inputs: int  # whose codes are one value for all outputs, and no zero point
    constant_outputs: int  # whose codes are one value for all inputs, and no zero point
    unscaled_groups: int  # whose scales are zero for all outputs, though their codes vary
    largest_group: float  # rms of its weights, by that of the layer's middle group
    smallest_group: float


def describe_parts(sample: LayerSample) -> LayerParts:
    """Compare the inputs, outputs and groups of a sample with each other."""
    codes, scales, groups = sample.codes, sample.scales, sample.groups
    steps = codes - sample.zeros[groups]
    is_weight = steps.abs() > AT_ZERO
    is_unscaled = (scales == 0).all(dim=1)
    varies = torch.zeros(len(scales)).index_add(0, groups, is_weight.float().amax(dim=1)) > 0
    largest, smallest = _extremes(steps * scales[groups], groups, len(scales))
    return LayerParts(
        name=sample.name,
        constant_inputs=_count_constant(codes, is_weight, FEWEST_OUTPUTS),
        constant_outputs=_count_constant(codes.t(), is_weight.t(), FEWEST_INPUTS),
        unscaled_groups=int((is_unscaled & varies).sum()),
        largest_group=largest,
        smallest_group=smallest,
    )


def _count_constant(codes: Tensor, is_weight: Tensor, fewest: int) -> int:
    """Count the rows of one code; one that is nearly everywhere the zero point counts as nought."""
    if codes.shape[1] < fewest:
        return 0
    is_one_value = (codes == codes[:, :1]).all(dim=1)
    return int((is_one_value & (is_weight.float().mean(dim=1) > 0.5)).sum())


def _extremes(weights: Tensor, groups: Tensor, num_groups: int) -> tuple[float, float]:
    """Return the rms of the largest and smallest group by the middle one's; without empty ones."""
    squares = weights.new_zeros(num_groups).index_add(0, groups, weights.square().mean(dim=1))
    sizes = (squares / torch.bincount(groups, minlength=num_groups).clamp(min=1)).sqrt()
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1.0, 1.0
    middle = float(sizes.median())
    return float(sizes.max()) / middle, float(sizes.min()) / middle


def check_parts(layers: Sequence[LayerParts]) -> list[Suspicion]:
    """Say in which layers a part is unlike the rest."""
    found = [_constant_parts(layers), _unscaled_groups(layers), _groups_out_of_line(layers)]
    return [suspicion for suspicion in found if suspicion is not None]


def _named(layers: Sequence[LayerParts]) -> str:
    names = ", ".join(layer.name for layer in layers[:_NAMED])
    return names if len(layers) <= _NAMED else f"{names} and {len(layers) - _NAMED} more"


def _constant_parts(layers: Sequence[LayerParts]) -> Suspicion | None:
    odd = [
        layer
        for layer in layers
        if layer.constant_inputs >= FEWEST_INPUTS or layer.constant_outputs >= FEWEST_OUTPUTS
    ]
    if not odd:
        return None
    first = odd[0]
    return Suspicion(
        "constant_parts",
        f"{_named(odd)}: the codes of {first.constant_inputs} inputs and of"
        f" {first.constant_outputs} of the outputs that were looked at are one value throughout,"
        " and not the zero point; that part of the file seems to be lost",
    )


def _unscaled_groups(layers: Sequence[LayerParts]) -> Suspicion | None:
    odd = [layer for layer in layers if layer.unscaled_groups]
    if not odd:
        return None
    return Suspicion(
        "scales_lost",
        f"{_named(odd)}: the scales of {odd[0].unscaled_groups} groups are zero, though their codes"
        " are not; that part of the file seems to be lost",
    )


def _groups_out_of_line(layers: Sequence[LayerParts]) -> Suspicion | None:
    odd = [
        layer
        for layer in layers
        if layer.largest_group > LARGEST_GROUP or layer.smallest_group < SMALLEST_GROUP
    ]
    if not odd:
        return None
    first = odd[0]
    return Suspicion(
        "groups_out_of_line",
        f"{_named(odd)}: groups of inputs are {first.smallest_group:.2g} to"
        f" {first.largest_group:.2g} times as large as the layer's middle one;"
        f" {SMALLEST_GROUP:.2g} to {LARGEST_GROUP:g} is expected, so scales seem to be damaged",
    )
