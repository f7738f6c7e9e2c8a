"""Layers of random weights, and a step of rows through them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from native.attention import Sequences
from native.llama_layers import LlamaLayer
from native.rows import HeadNorm
from tests.native.paged import BLOCK_SIZE, make_tables, slots_of
from tests.native.weights import random_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

HIDDEN, INNER = 192, 320
# What each row is: a sequence's last token, or one of several of a draft.
LENGTHS = (1, 150, 16, 17, 129, 40, 2, 300)


def make_layer(
    *,
    num_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    num_planes: int = 1,
    has_head_norm: bool = False,
    window: int | None = None,
    **others: Any,
) -> LlamaLayer:
    """others: of the weights, see `random_weight`."""
    width = num_heads * head_dim
    kind = {"num_planes": num_planes, **others}
    norms = {"query": 1 + torch.rand(head_dim), "key": 1 + torch.rand(head_dim)}
    return LlamaLayer(
        attention_norm=1 + torch.randn(HIDDEN) * 0.1,
        qkv=random_weight(HIDDEN, 64, width + 2 * num_kv_heads * head_dim, **kind),
        head_norm=HeadNorm(**norms, eps=1e-6) if has_head_norm else None,
        output=random_weight(width, 64, HIDDEN, **kind),
        mlp_norm=1 + torch.randn(HIDDEN) * 0.1,
        gate_up=random_weight(HIDDEN, 32, 2 * INNER, **kind),
        down=random_weight(INNER, 64, HIDDEN, **kind),
        eps=1e-5,
        num_heads=num_heads,
        scale=head_dim**-0.5,
        window=window,
    )


class Step:
    """Rows, and a cache for every layer that holds what came before."""

    def __init__(
        self,
        layers: list[LlamaLayer],
        *,
        num_kv_heads: int = 2,
        head_dim: int = 64,
        kv_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.layers = layers
        self.residual = torch.randn(len(LENGTHS), HIDDEN)
        self.rotation = torch.stack(
            (torch.rand(300, head_dim), torch.rand(300, head_dim) - 0.5), dim=1
        )
        tables, num_slots = make_tables(LENGTHS)
        positions = torch.tensor(LENGTHS) - 1
        self.seen = Sequences(tables, torch.arange(len(LENGTHS)), positions, BLOCK_SIZE)
        self.slots = torch.stack(
            [slots_of(tables, row, length)[-1] for row, length in enumerate(LENGTHS)]
        )
        shape = (num_slots, 2, num_kv_heads, head_dim)
        self.caches = [torch.randn(shape).to(kv_dtype) for _ in layers]

    def run(
        self,
        make: Callable[..., Any],
        rows: slice | Tensor = slice(None),
        num_layers: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run some rows, and twice what is named twice; return their residual and the caches.

        What the step holds is kept untouched.
        """
        residual = self.residual[rows].clone()
        caches = [cache.clone() for cache in self.caches]
        seen = replace(
            self.seen,
            rows=self.seen.rows[rows].clone(),
            positions=self.seen.positions[rows].clone(),
        )
        layers = make(self.layers, caches)
        slots = self.slots[rows]
        layers.run(residual, self.rotation, slots, seen, num_layers=num_layers, **others)
        return residual, caches
