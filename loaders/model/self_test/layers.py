"""A few layers' products, compared with the checkpoint's own tensors in float32.

An error is measured against the size that an output's terms have when their signs are left to
chance: sqrt(sum over inputs of x^2 * (w^2 + mean of the row's w^2) + output^2). Roundings come to
about one unit of it, wrong weights to a good part of it, whatever the model. So the bounds follow
from what a kernel rounds, `Kernel.unit_roundoff`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loaders.model.packed_linear import PackedLinear
from loaders.quantization.kernel_rules import ROWS_OF_OTHER_WAYS
from loaders.reports.self_test import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from loaders.model.self_test.reference_weights import ReferenceWeight

# In units of the kernel's largest rounding error. Five roundings meet in one term at most (of the
# activation, the scale, the minimum, the weight, the result); they average out unless one input is
# nearly all of an output, as in models with massive activations. Measured for 12 layers of each of
# the demo's branches, two cores, 2026-11: at most 3.2 for an output and 0.5 for all of a layer. The
# faults of tests/loaders/test_self_test.py came to 2.3 times what is allowed or more there; zero
# points off by one in 8 bits are the least of them.
MAX_OUTPUT_ERROR = 6.0
# Of all outputs together only the rounding of a shared input does not average out.
MAX_LAYER_ERROR = 1.5
# What a report says of products that are no numbers; JSON has no infinity.
WORST_OF_ALL = 1e9
# Sums in float32, in another order than the reference's.
SUM_ERROR = 2**-14
# Kernels take few rows another way than many; each way is tried.
PIECES = (1, 2, 4, 8, 16)
PIECE_OUTPUTS = 1024
# An output much smaller than the others is measured by them: a dead one has no size of its own.
SMALLEST_OUTPUT = 0.1

_LAYER_NUMBER = re.compile(r"(.*?\.\d+)\.")


def choose_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """Return linear layers of the first, middle and last block: one of each shape in each.

    Of those with the same shape every block shows another one.
    """
    blocks = list(_linears_by_block(model).values())
    if not blocks:
        return {}
    chosen: dict[str, PackedLinear] = {}
    for turn, number in enumerate(sorted({0, len(blocks) // 2, len(blocks) - 1})):
        for alike in _by_shape(blocks[number]).values():
            name, layer = alike[turn % len(alike)]
            chosen[name] = layer
    return chosen


def _linears_by_block(model: nn.Module) -> dict[str, dict[str, PackedLinear]]:
    blocks: dict[str, dict[str, PackedLinear]] = {}
    for name, module in model.named_modules():
        match = _LAYER_NUMBER.match(name)
        if match is not None and isinstance(module, PackedLinear):
            blocks.setdefault(match[1], {})[name] = module
    return blocks


def _by_shape(
    linears: Mapping[str, PackedLinear],
) -> dict[tuple[object, ...], list[tuple[str, PackedLinear]]]:
    shapes: dict[tuple[object, ...], list[tuple[str, PackedLinear]]] = {}
    for name, layer in linears.items():
        shape = (layer.in_features, layer.out_features, layer.format, layer.backend)
        shapes.setdefault(shape, []).append((name, layer))
    return shapes


class SeenInputs:
    """Notes what layers get while the model runs; to be used as a context."""

    def __init__(self, layers: Mapping[str, PackedLinear]) -> None:
        self.rows: dict[str, Tensor] = {}  # [rows, in], by layer
        self._layers = layers
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> SeenInputs:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._note(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            if name not in self.rows:  # the prompt's; single tokens follow
                self.rows[name] = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).clone()

        return note


def check_layer(
    name: str, layer: PackedLinear, x: Tensor | None, reference_weight: ReferenceWeight
) -> Check:
    """Compare a layer's products of x [rows, in], many rows at once and few, with the reference.

    x: None where the layer did not run.
    """
    if x is None:
        return Check(name, None, "the model gave it nothing to do")
    if not bool(torch.isfinite(x).all()):
        return Check(name, None, "its inputs are no numbers: a layer before it made them")
    weight = reference_weight(name)
    if weight is None:
        return Check(name, None, "the files hold no weight of this name", backend=layer.backend)
    bias = None if layer.bias is None else layer.bias.float().cpu()
    expected = Expected.of(x.float().cpu(), weight.cpu(), bias)
    bounds = Bounds.of(layer.unit_roundoff, x.dtype)
    return compare_products(name, layer.backend, _products(layer, x), expected, bounds)


def compare_products(
    name: str,
    backend: str,
    products: Iterable[tuple[str, Tensor]],
    expected: Expected,
    bounds: Bounds,
) -> Check:
    """Say how far a layer's products are off; each comes with how it was made, in words."""
    findings = [
        finding
        for how, product in products
        for finding in expected.compare(product.float().cpu(), bounds, how)
    ]
    share, detail = max(findings)
    worst = min(share, WORST_OF_ALL)
    return Check(name, share <= 1, f"{backend}: {detail}", worst, backend)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far the products of a right kernel may be off, as shares of their terms' size."""

    output: float  # root of the mean square over all rows, for each output
    layer: float  # the same over all outputs, too

    @classmethod
    def of(cls, unit_roundoff: float, dtype: torch.dtype) -> Bounds:
        """unit_roundoff: the kernel's. dtype: of activations, which products are rounded to."""
        unit = max(unit_roundoff, torch.finfo(dtype).eps / 2)
        return cls(MAX_OUTPUT_ERROR * unit + SUM_ERROR, MAX_LAYER_ERROR * unit + SUM_ERROR)


def _products(layer: PackedLinear, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{len(x)} rows at once", layer(x)
    pieces = torch.split(x, _piece_sizes(len(x)))
    yield "few rows at once", torch.cat([layer(rows) for rows in pieces])
    for size in ROWS_OF_OTHER_WAYS.get(layer.backend, ()):
        yield f"{size} rows at once", _in_pieces(layer, x, size)


def _in_pieces(layer: PackedLinear, x: Tensor, size: int) -> Tensor:
    """Multiply so many rows at once, the first ones again where there are too few."""
    num_rows = -(-len(x) // size) * size
    places = torch.arange(num_rows, device=x.device) % len(x)
    return torch.cat([layer(rows) for rows in torch.split(x[places], size)])[: len(x)]


def _piece_sizes(num_rows: int) -> list[int]:
    sizes: list[int] = []
    for size in PIECES:
        if sum(sizes) + size <= num_rows:
            sizes.append(size)
    rest = num_rows - sum(sizes)
    return [*sizes, rest] if rest else sizes


@dataclass(frozen=True, slots=True)
class Expected:
    """What the reference gives for some rows, and how large an error counts as one."""

    product: Tensor  # [rows, out] float32
    size: Tensor  # [rows, out] float32

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor | None) -> Expected:
        """x: [rows, in], weight: [out, in], bias: [out], all float32."""
        # In pieces: the squares of a large weight take as much memory as the weight.
        pieces = torch.split(weight, PIECE_OUTPUTS)
        terms = torch.cat([_terms(x, piece) for piece in pieces], dim=1)
        product = torch.nn.functional.linear(x, weight, bias)
        size = (terms + product.square()).sqrt()
        typical = size.median(dim=1, keepdim=True).values
        tiny = torch.finfo(size.dtype).tiny
        return cls(product, size.maximum(typical * SMALLEST_OUTPUT).clamp(min=tiny))

    def compare(self, product: Tensor, bounds: Bounds, how: str) -> list[tuple[float, str]]:
        """Return the errors of the worst output and of all: shares of what is allowed, in words."""
        squares = ((product - self.product) / self.size).square().mean(dim=0)
        # What is no number counts as more than any.
        errors = squares.nan_to_num(nan=torch.inf).sqrt()
        worst, output = errors.max(dim=0)
        error, total = float(worst), float(errors.square().mean().sqrt())
        return [
            (
                error / bounds.output,
                f"output {int(output)} is off by {error:.2e} ({bounds.output:.2e} allowed), {how}",
            ),
            (
                total / bounds.layer,
                f"all outputs are off by {total:.2e} ({bounds.layer:.2e} allowed), {how}",
            ),
        ]


def _terms(x: Tensor, weight: Tensor) -> Tensor:
    """Add up the squares of outputs' terms, each weight with its row's mean square: [rows, out]."""
    inputs, weights = x.square(), weight.square()
    return inputs @ weights.t() + torch.outer(inputs.sum(dim=1), weights.mean(dim=1))
