"""Whether packed weights agree with themselves: layer by layer, and each with its neighbours.

The bounds lie between what right readings of the demo's branches and of normally distributed
weights give and what each wrong form gives (2026-11; docs/trust.md lists the forms):

    median over layers             right               wrong
    offset, in steps               -0.02 … 0.17        0.9 … 1.1
    scale_correlation              -0.89 … -0.22       -0.18 … 0.15, groups of -0.17 … -0.26 a layer
    zero_correlation               0.88 … 0.99         -0.1 … 0.51
    shift of a layer               under 0.03          over 0.8, of zero points four steps off
    scale_correlation of a layer   -0.86 … -0.27       -0.18 … 0.18, the scales of another
    spread of a layer between two  0.66 … 1.76 of their mean
"""

from __future__ import annotations

import math
import re
from statistics import median
from typing import TYPE_CHECKING

from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loaders.model.plausibility.statistics import LayerStatistics

# Of all layers together.
OFF_BY_ONE = (0.5, 1.5)
FAR_SHIFT = 0.5  # of the weights' spread
LARGEST_SCALE_CORRELATION = -0.2
SMALLEST_ZERO_CORRELATION = 0.6
# Of one layer, where the others are right beyond doubt.
LAYER_SCALE_CORRELATION = -0.16
CLEAR_SCALE_CORRELATION = -0.5
LAYER_ZERO_CORRELATION = 0.4
CLEAR_ZERO_CORRELATION = 0.75
SURE_OFFSET_ERROR = 0.05  # steps; more in 8 bits, where a layer alone says too little
MOST_NEGATIVE = 0.95  # of a layer's scales; some quantisers give half of them a sign
SPREADS = (1e-3, 500.0)  # what a layer makes of inputs of size one; trained and random: 0.5 … 50
NEIGHBOUR_RATIO = 3.0
_NAMED = 3  # layers, in a message

_NUMBER = re.compile(r"\.\d+\.")


def check_weights(layers: Sequence[LayerStatistics]) -> list[Suspicion]:
    """Say what is odd about the layers."""
    found = [_unused_groups(layers)]
    layers = [layer for layer in layers if not (layer.has_random_codes or layer.num_unused_groups)]
    if layers:
        found += _check_values(layers)
    return [suspicion for suspicion in found if suspicion is not None]


def _check_values(layers: Sequence[LayerStatistics]) -> list[Suspicion | None]:
    return [
        _zeros_off_by_one(layers),
        _zeros_far_off(layers),
        _strange_scales(layers),
        _strange_zeros(layers),
        _negative_scales(layers),
        _strange_spread(layers),
        _strange_neighbours(layers),
    ]


def _named(layers: Sequence[LayerStatistics]) -> str:
    names = ", ".join(layer.name for layer in layers[:_NAMED])
    return names if len(layers) <= _NAMED else f"{names} and {len(layers) - _NAMED} more"


def _unused_groups(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    odd = [layer for layer in layers if layer.num_unused_groups]
    if not odd:
        return None
    return Suspicion(
        "unused_scales",
        f"{_named(odd)}: no input belongs to {odd[0].num_unused_groups} of the rows of scales;"
        " every row should have inputs, so g_idx does not fit",
    )


def _zeros_off_by_one(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    low, high = OFF_BY_ONE
    typical = median(layer.offset for layer in layers)
    # The error of the mean over all layers, of which a median has a quarter more.
    error = 1.25 * math.sqrt(sum(one.offset_error**2 for one in layers)) / len(layers)
    if low < abs(typical) < high and abs(typical) - low > 3 * error:
        return Suspicion(
            "zero_points_off_by_one",
            f"weights lie {-typical:.2f} steps below nought in the middle of {len(layers)} layers;"
            " a zero point read as one more or less does that (checkpoint format gptq for"
            " gptq_v2, or the other way round)",
        )
    sure = [layer for layer in layers if layer.offset_error < SURE_OFFSET_ERROR]
    odd = [layer for layer in sure if low < abs(layer.offset - typical) < high]
    if not odd:
        return None
    return Suspicion(
        "zero_points_off_by_one",
        f"{_named(odd)}: weights lie {odd[0].offset:.2f} steps from nought, other layers' do not",
    )


def _zeros_far_off(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    """Look for weights that are far off nought, in all layers or in one.

    In many bits a few steps are little, so it counts what they are of the weights' spread.
    """
    _, near = OFF_BY_ONE
    far = [layer for layer in layers if abs(layer.offset) > near and abs(layer.shift) > FAR_SHIFT]
    if not far:
        return None
    return Suspicion(
        "zero_points_far_off",
        f"{_named(far)}: weights lie {far[0].offset:.1f} steps from nought, {abs(far[0].shift):.1f}"
        " times their spread; zero points or codes are another file's, or lost",
    )


def _strange_scales(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    return _strange_correlation(
        layers,
        lambda layer: None if layer.scale_correlation is None else -layer.scale_correlation,
        of_all=-LARGEST_SCALE_CORRELATION,
        of_one=-LAYER_SCALE_CORRELATION,
        clear=-CLEAR_SCALE_CORRELATION,
        suspicion="scales_elsewhere",
        meaning="codes are not spread the less the larger their group's scale is, so scales and"
        " codes seem to belong to different groups or outputs",
    )


def _strange_zeros(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    return _strange_correlation(
        layers,
        lambda layer: layer.zero_correlation,
        of_all=SMALLEST_ZERO_CORRELATION,
        of_one=LAYER_ZERO_CORRELATION,
        clear=CLEAR_ZERO_CORRELATION,
        suspicion="zero_points_elsewhere",
        meaning="the mean of a group's codes does not follow its zero point, so zero points and"
        " codes seem to belong to different groups or outputs",
    )


def _strange_correlation(
    layers: Sequence[LayerStatistics],
    value_of: Callable[[LayerStatistics], float | None],
    *,
    of_all: float,
    of_one: float,
    clear: float,
    suspicion: str,
    meaning: str,
) -> Suspicion | None:
    """Look for too small a value: in the middle of all layers, or in one where others are clear."""
    values = [(layer, value) for layer in layers if (value := value_of(layer)) is not None]
    if not values:
        return None
    typical = median(value for _, value in values)
    if typical < of_all:
        detail = f"{typical:.2f} in the middle of {len(values)} layers, {of_all:.2f} expected"
        return Suspicion(suspicion, f"{meaning} (correlation {detail} at least)")
    odd = [layer for layer, value in values if value < of_one]
    if typical < clear or not odd:
        return None
    return Suspicion(suspicion, f"{_named(odd)}: {meaning}; in other layers they do")


def _negative_scales(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    odd = [layer for layer in layers if layer.negative_scales > MOST_NEGATIVE]
    if not odd:
        return None
    return Suspicion("negative_scales", f"{_named(odd)}: scales are negative, not positive")


def _strange_spread(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    typical = median(layer.spread for layer in layers)
    low, high = SPREADS
    if low < typical < high:
        return None
    return Suspicion(
        "weights_out_of_range",
        f"a layer makes {typical:.2g} of inputs of size one in the middle of {len(layers)} layers;"
        f" {low:g} to {high:g} are expected, so scales seem to be missing or misread",
    )


def _strange_neighbours(layers: Sequence[LayerStatistics]) -> Suspicion | None:
    odd = [
        layer
        for before, layer, after in _between_neighbours(layers)
        if _is_out_of_line(layer.spread, before.spread, after.spread)
    ]
    if not odd:
        return None
    return Suspicion(
        "unlike_its_neighbours",
        f"{_named(odd)}: weights are over {NEIGHBOUR_RATIO:g} times as large or small as in the"
        " blocks before and after",
    )


def _between_neighbours(
    layers: Sequence[LayerStatistics],
) -> Iterator[tuple[LayerStatistics, LayerStatistics, LayerStatistics]]:
    """Give each layer with those of the same kind in the block before and after."""
    kinds: dict[str, list[LayerStatistics]] = {}
    for layer in layers:
        if layer.spread > 0:  # else the block is meant to change nothing, as where it was inserted
            kinds.setdefault(_NUMBER.sub(".*.", layer.name), []).append(layer)
    for alike in kinds.values():
        for before, layer, after in zip(alike, alike[1:], alike[2:], strict=False):
            number = _block_number(layer)
            if _block_number(before) == number - 1 and _block_number(after) == number + 1:
                yield before, layer, after


def _block_number(layer: LayerStatistics) -> int:
    """Return the number of a layer's block; those without one are as far apart as can be."""
    found = _NUMBER.search(layer.name)
    return int(found[0].strip(".")) if found else 0


def _is_out_of_line(value: float, before: float, after: float) -> bool:
    high, low = max(before, after), min(before, after)
    if high > NEIGHBOUR_RATIO * low:  # they do not agree with each other
        return False
    return value > NEIGHBOUR_RATIO * high or value * NEIGHBOUR_RATIO < low
