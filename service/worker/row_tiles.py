"""Linear kernels with every number of rows that they take another way, one against the other.

A model's self-test sees 64 rows and fewer. Beyond that Triton's kernels dequantise pieces for
cuBLAS, which nobody else would run before the first long prompt. Here each way meets the same rows,
so that each is compiled, too, before an engine is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.step_test.step_check import Part, StepCheck, compare, off_by, unit_roundoff
from loaders.model.self_test.layers import choose_layers
from loaders.quantization.plane_layout import MAX_FEW_ROWS, ROW_TILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.model.packed_linear import PackedLinear

# A step of each tile, the largest of them not full, and together more than few rows.
PIECES = (ROW_TILES[0], ROW_TILES[1] - 8, MAX_FEW_ROWS - ROW_TILES[1])
NUM_ROWS = sum(PIECES)


@torch.inference_mode()
def check_row_tiles(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[StepCheck]:
    """Multiply many rows at once and in pieces, by a layer of each shape; dtype: of activations."""
    generator = torch.Generator(model.device).manual_seed(0)
    by_shape = {
        (layer.in_features, layer.out_features): layer for layer in choose_layers(model).values()
    }
    worst = 0.0
    for layer in by_shape.values():
        drawn = torch.randn((NUM_ROWS, layer.in_features), generator=generator, device=model.device)
        worst = max(worst, _worst_of(layer, drawn.to(dtype)))
    yield StepCheck("many rows", Part.LINEARS, worst <= 1, off_by(worst), worst)


def _worst_of(layer: PackedLinear, rows: Tensor) -> float:
    in_pieces = torch.cat([layer(piece) for piece in rows.split_with_sizes(list(PIECES))])
    return compare(layer(rows), in_pieces, max(layer.unit_roundoff, unit_roundoff(rows.dtype)))
