"""Linear weights stored in orders of their own, as checkpoints with act order have them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.layers.weights import LinearWeight


class OrderedWeight(nn.Module):
    """A weight whose inputs, and perhaps outputs, lie in another order; fuses like with like."""

    num_invariant_rows = None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: Tensor | None = None,
        outputs: Tensor | None = None,
        *,
        can_fuse: bool = True,
    ) -> None:
        """weight, bias: in the model's own order. inputs, outputs: place → the model's."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.input_permutation = inputs
        self.output_permutation = outputs
        self.can_fuse = can_fuse
        self.calls: Counter[int] = Counter()  # by outputs
        rows = torch.arange(self.out_features) if outputs is None else outputs
        columns = torch.arange(self.in_features) if inputs is None else inputs
        self.natural = weight.detach(), None if bias is None else bias.detach()
        self.stored = self.natural[0][rows][:, columns]
        self.bias = None if bias is None else bias.detach()[rows]

    def matmul(self, x: Tensor) -> Tensor:
        self.calls[self.out_features] += 1
        out = x @ self.stored.to(x.dtype).T
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def fuse_with(self, others: Sequence[LinearWeight]) -> OrderedWeight | None:
        parts: list[Any] = [self, *others]
        if not all(isinstance(part, OrderedWeight) and part.can_fuse for part in parts):
            return None
        if any(not _is_same(part.input_permutation, self.input_permutation) for part in parts):
            return None
        biases = [
            torch.zeros(part.out_features) if part.natural[1] is None else part.natural[1]
            for part in parts
        ]
        outputs, first = [], 0
        for part in parts:
            own = part.output_permutation
            outputs.append((torch.arange(part.out_features) if own is None else own) + first)
            first += part.out_features
        is_natural = all(part.output_permutation is None for part in parts)
        return OrderedWeight(
            torch.cat([part.natural[0] for part in parts]),
            torch.cat(biases),
            self.input_permutation,
            None if is_natural else torch.cat(outputs),
        )


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def store_in_orders(
    model: Any, *, are_shared: bool = True, is_folded: bool = True, can_fuse: bool = True
) -> None:
    """Give every linear layer of a Llama-like model an act order.

    are_shared: layers that read one input have one order. is_folded: gate's and up's outputs come
    in the order that down reads.
    """
    generator = torch.Generator().manual_seed(7)

    def order_of(linear: nn.Linear) -> Tensor:
        return torch.randperm(linear.in_features, generator=generator)

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        down = order_of(mlp.down_proj)
        for block, names in (
            (attention, ("q_proj", "k_proj", "v_proj")),
            (attention, ("o_proj",)),
            (mlp, ("gate_proj", "up_proj")),
        ):
            shared = order_of(getattr(block, names[0]))
            for name in names:
                linear = getattr(block, name)
                inputs = shared if are_shared else order_of(linear)
                outputs = down if is_folded and block is mlp else None
                put_in_order(block, name, inputs, outputs, can_fuse=can_fuse)
        put_in_order(mlp, "down_proj", down)


def put_in_order(
    block: Any,
    name: str,
    inputs: Tensor | None,
    outputs: Tensor | None = None,
    *,
    can_fuse: bool = True,
) -> None:
    """Store one linear layer in orders."""
    linear = getattr(block, name)
    stored = OrderedWeight(linear.weight, linear.bias, inputs, outputs, can_fuse=can_fuse)
    setattr(block, name, stored)
