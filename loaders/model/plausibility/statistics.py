"""What a sample of a layer's codes, scales and zero points says of how they belong together.

Quantisers choose scale and zero point from the weights of the group. So in a file that was read
right a group's codes are spread the less the larger its scale is, compared with other groups of
the same output; their mean follows the zero point; and dequantised weights lie around nought. None
of that is left between numbers that do not belong together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.model.plausibility.sampling import LayerSample

# Groups with less spread, in steps, hold next to one value: pruned, or padding.
SMALLEST_SPREAD = 0.25
# Zero points that vary less, in steps, vary no more than the means that they are compared with.
SMALLEST_ZERO_SPREAD = 0.5
# Fewer groups times outputs say nothing of a correlation.
FEWEST_GROUPS = 96
# Random words have a quarter of the codes in each quarter of the range; normally distributed
# weights in groups of 16 have 0.22 to 0.28, in larger ones it is further from a quarter.
RANDOM_QUARTERS = (0.24, 0.26)


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One layer's sample in a few numbers; None where it says nothing of that."""

    name: str
    offset: float  # mean of the dequantised weights, in steps
    offset_error: float  # its standard error if the true mean were nought
    shift: float  # that mean by the weights' spread
    scale_correlation: float | None  # of the codes' spread with the scale, over groups
    zero_correlation: float | None  # of the codes' mean with the zero point, over groups
    num_unused_groups: int  # that no input belongs to
    negative_scales: float  # share
    spread: float  # rms of the dequantised weights times the root of the number of inputs
    has_random_codes: bool  # whether every code is as frequent as any other


def describe_layer(sample: LayerSample) -> LayerStatistics:
    """Compute a sample's statistics."""
    codes, scales, zeros, groups = sample.codes, sample.scales, sample.zeros, sample.groups
    steps = (codes - zeros[groups]) * scales[groups].sign()
    counts = torch.bincount(groups, minlength=len(scales))
    used = counts > 0
    means, spreads = _group_moments(codes, groups, counts)
    sizes = scales.abs()
    whole = ((spreads > SMALLEST_SPREAD) & (sizes > 0))[used].all(dim=0)
    part = (used.nonzero().flatten()[:, None], whole.nonzero().flatten()[None, :])
    offset, spread_of_steps = float(steps.mean()), float(steps.std())
    return LayerStatistics(
        name=sample.name,
        offset=offset,
        offset_error=spread_of_steps / math.sqrt(steps.numel()),
        shift=offset / max(spread_of_steps, SMALLEST_SPREAD),
        scale_correlation=_correlation(spreads[part].log(), sizes[part].log()),
        zero_correlation=_zero_correlation(means[part], zeros[part]),
        num_unused_groups=int((~used).sum()),
        negative_scales=float((scales < 0).float().mean()),
        spread=float((steps * sizes[groups]).square().mean().sqrt()) * math.sqrt(len(codes)),
        has_random_codes=_has_random_codes(codes, sample.format.bits),
    )


def _group_moments(codes: Tensor, groups: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return each group's mean and standard deviation of codes, [groups, outputs]."""
    total = codes.new_zeros(len(counts), codes.shape[1])
    sizes = counts.clamp(min=1)[:, None]
    means = total.index_add(0, groups, codes) / sizes
    squares = total.index_add(0, groups, (codes - means[groups]).square()) / sizes
    return means, squares.sqrt()


def _correlation(first: Tensor, second: Tensor) -> float | None:
    """Correlate [groups, outputs] beyond what each output and each group have in common.

    None for single groups: how outputs differ from each other says nothing of their order.
    """
    if len(first) < 2 or first.numel() < FEWEST_GROUPS:
        return None
    return _cosine(_without_means(first), _without_means(second))


def _zero_correlation(means: Tensor, zeros: Tensor) -> float | None:
    if means.numel() < FEWEST_GROUPS // 2:
        return None
    means, zeros = means - means.mean(), zeros - zeros.mean()
    if float(zeros.square().mean().sqrt()) < SMALLEST_ZERO_SPREAD:
        return None
    return _cosine(means, zeros)


def _without_means(values: Tensor) -> Tensor:
    values = values - values.mean(dim=0, keepdim=True)
    return values - values.mean(dim=1, keepdim=True)


def _cosine(first: Tensor, second: Tensor) -> float | None:
    sizes = float(first.norm() * second.norm())
    # Scales that are equal up to rounding say nothing of their order.
    if float(second.square().mean().sqrt()) < 1e-3 or sizes == 0:
        return None
    return float((first * second).sum()) / sizes


def _has_random_codes(codes: Tensor, bits: int) -> bool:
    quarters = torch.bincount((codes.long() >> (bits - 2)).flatten(), minlength=4) / codes.numel()
    low, high = RANDOM_QUARTERS
    return bool(((quarters > low) & (quarters < high)).all())
