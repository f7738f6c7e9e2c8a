"""Step kernels against their references, on random numbers of the model's own sizes.

What no row may look at is poisoned: places behind a sequence's last token hold numbers that would
be seen at once, and blocks of nobody's hold NaN.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from engine.kernels.step_kernels import DecodeRows, HeadNorm, KVLayer, Order
from engine.step_test.step_check import Part, StepCheck, compare, off_by, unit_roundoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from engine.kernels.step_kernels import StepKernels
    from engine.step_test.step_sizes import StepSizes

# Tokens that decode rows see: within a block, at its end and behind it, several blocks, and, on a
# GPU, so many that attention is split.
LENGTHS = (1, 16, 17, 45)
LONG_LENGTHS = (700, 2600)
NUM_ROWS = (1, 5)
POISON = 3e4  # that float16 holds; nothing near it comes out of numbers around one


class KernelTest:
    """The checks of one set of kernels."""

    def __init__(self, kernels: StepKernels, reference: StepKernels, sizes: StepSizes) -> None:
        self._kernels = kernels
        self._reference = reference
        self._sizes = sizes
        self._unit = unit_roundoff(sizes.dtype)
        self._generator = torch.Generator(sizes.device).manual_seed(0)

    @torch.inference_mode()
    def run(self) -> Iterator[StepCheck]:
        """Make the checks, one after the other, so that one that fails is known by its place."""
        checks: dict[str, Callable[[], float]] = {
            "add_norm": self._add_norm,
            "silu_mul": self._silu_mul,
            "rotate_and_store": self._rotate_and_store,
            "decode_attention": self._decode_attention,
        }
        for name, worst_of in checks.items():
            worst = worst_of()
            detail = f"{self._kernels.name}: {off_by(worst)}"
            yield StepCheck(name, Part.STEP_KERNELS, worst <= 1, detail, worst)

    def _add_norm(self) -> float:
        width, worst = self._sizes.hidden, 0.0
        weight = self._random(width)
        for num_rows in NUM_ROWS:
            residual, delta = self._random(num_rows, width), self._random(num_rows, width)
            for added, order in ((delta, self._order(width)), (None, None)):
                mine, theirs = residual.clone(), residual.clone()
                found = self._kernels.add_norm(mine, added, weight, self._sizes.eps, order)
                wanted = self._reference.add_norm(theirs, added, weight, self._sizes.eps, order)
                worst = max(
                    worst, compare(found, wanted, self._unit), compare(mine, theirs, self._unit)
                )
        return worst

    def _silu_mul(self) -> float:
        worst = 0.0
        for num_rows in NUM_ROWS:
            gate_up = self._random(num_rows, 2 * self._sizes.intermediate)
            found, wanted = self._kernels.silu_mul(gate_up), self._reference.silu_mul(gate_up)
            worst = max(worst, compare(found, wanted, self._unit))
        return worst

    def _rotate_and_store(self) -> float:
        sizes, num_rows = self._sizes, NUM_ROWS[-1]
        rotation = self._rotation(num_positions := 64)
        positions = self._whole_numbers(num_rows, num_positions)
        slots = torch.randperm(
            3 * num_rows, generator=self._generator, device=sizes.device, dtype=torch.int64
        )[:num_rows]
        qkv = self._random(num_rows, (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim)
        head_norm = None
        if sizes.has_head_norm:
            head_norm = HeadNorm(
                self._random(sizes.head_dim), self._random(sizes.head_dim), sizes.eps
            )
        empty = self._cache(3 * num_rows)
        queries, layers = [], []
        for kernels in (self._kernels, self._reference):
            layer = _copy_of(empty)
            queries.append(
                kernels.rotate_and_store(
                    qkv.clone(),
                    rotation,
                    positions,
                    slots,
                    layer,
                    num_heads=sizes.num_heads,
                    head_norm=head_norm,
                )
            )
            layers.append(layer)
        stored = [_widened(layer) for layer in layers]
        return max(
            compare(queries[0], queries[1], self._unit),
            compare(stored[0], stored[1], max(self._unit, unit_roundoff(sizes.kept_as))),
        )

    def _decode_attention(self) -> float:
        sizes, worst = self._sizes, 0.0
        layer, rows = self._filled_cache(self._lengths())
        query = self._random(len(rows.slots), sizes.num_heads, sizes.head_dim)
        width = sizes.num_heads * sizes.head_dim
        for window in sizes.windows:
            for order in (None, self._order(width)):
                found, wanted = (
                    kernels.decode_attention(
                        query,
                        layer,
                        rows,
                        scale=sizes.head_dim**-0.5,
                        window=window,
                        order=order,
                    )
                    for kernels in (self._kernels, self._reference)
                )
                worst = max(worst, compare(found, wanted, self._unit))
        return worst

    # ── what they are given ─────────────────────────────────────────────────────────────────────

    def _random(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, device=self._sizes.device)
        return drawn.to(self._sizes.dtype)

    def _whole_numbers(self, count: int, below: int) -> Tensor:
        return torch.randint(below, (count,), generator=self._generator, device=self._sizes.device)

    def _order(self, width: int) -> Order:
        permutation = torch.randperm(width, generator=self._generator, device=self._sizes.device)
        return Order.of(permutation)

    def _rotation(self, num_positions: int) -> Tensor:
        half = self._sizes.head_dim // 2
        angles = 6.3 * torch.rand(
            num_positions, half, generator=self._generator, device=self._sizes.device
        )
        cos, sin = angles.cos(), angles.sin()
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
        return table.to(self._sizes.dtype)

    def _cache(self, num_slots: int) -> KVLayer:
        """Keys and values around one, in the type that they are kept in."""
        sizes = self._sizes
        shape = (num_slots, 2, sizes.num_kv_heads, sizes.head_dim)
        drawn = torch.randn(shape, generator=self._generator, device=sizes.device)
        if not sizes.is_scaled:
            return KVLayer(drawn.to(sizes.kept_as), None)
        scales = 0.5 + torch.rand((*shape[:-1], 1), generator=self._generator, device=sizes.device)
        return KVLayer((32 * drawn).clamp(-400, 400).to(sizes.kept_as), (scales / 32).half())

    def _lengths(self) -> list[int]:
        longer = LONG_LENGTHS if self._sizes.device.type == "cuda" else ()
        return sorted({min(length, self._sizes.max_model_len) for length in (*LENGTHS, *longer)})

    def _filled_cache(self, lengths: list[int]) -> tuple[KVLayer, DecodeRows]:
        """A cache whose blocks lie in any order, with poison where no row may look."""
        size, device = self._sizes.block_size, self._sizes.device
        num_blocks = [-(-length // size) for length in lengths]
        total = sum(num_blocks) + 2  # one is empty, one is nobody's
        layer = self._cache(total * size)
        by_block = layer.values.view(total, size, *layer.values.shape[1:])
        blocks = torch.randperm(total, generator=self._generator, device=device).tolist()
        empty, nobodys = blocks.pop(), blocks.pop()
        _fill(by_block[empty], 0.0)
        _fill(by_block[nobodys], torch.nan)
        poison = min(POISON, torch.finfo(self._sizes.kept_as).max / 2)
        tables = torch.full((len(lengths) + 1, max(num_blocks)), empty, device=device)
        for row, length in enumerate(lengths):
            own = [blocks.pop() for _ in range(num_blocks[row])]
            tables[row, : len(own)] = torch.tensor(own, device=device)
            in_last = length - (len(own) - 1) * size
            _fill(by_block[own[-1], in_last:], poison)
        # Not every row has the slot of its own number.
        slots = torch.arange(len(lengths) - 1, -1, -1, device=device)
        positions = torch.tensor([lengths[slot] - 1 for slot in slots.tolist()], device=device)
        return layer, DecodeRows(slots, positions, tables, size)


def _fill(places: Tensor, number: float) -> None:
    """Write a number, into float8 as well, which knows no `fill_`."""
    places.copy_(torch.full_like(places, number, dtype=torch.float32))


def _copy_of(layer: KVLayer) -> KVLayer:
    return replace(
        layer,
        values=layer.values.clone(),
        scales=None if layer.scales is None else layer.scales.clone(),
    )


def _widened(layer: KVLayer) -> Tensor:
    values = layer.values.float()
    return values if layer.scales is None else values * layer.scales.float()
