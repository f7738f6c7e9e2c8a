"""The Llama family's decoder on a GPU: what `llama` computes, in as few launches as it takes.

A layer is seven operations beside attention's own: add and norm, product of queries, keys and
values, product of what was attended, add and norm, product of gate and up, SiLU × up, product
down. Each stores its columns in the order that the next one reads (`Order`), so an act order costs
nothing; what a layer adds to the residual is added by the next norm.

Activations and residual have the model's dtype, as in Transformers (float32 on the CPU, where all
of this runs in tests); the kernels' arithmetic is float32. Which kernels they are, and how
attention finds keys and values, is not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from engine.kernels.step_kernels import HeadNorm
from engine.layers.llama import activation_dtype, rotation_table, sliding_window
from engine.layers.ordered import OrderedLinears, gather_between, order_of_halves
from engine.layers.truncation import LayerList
from engine.layers.weights import LinearsInUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from engine.attention.interface import FusedAttentionStep, ModelInput
    from engine.kernels.step_kernels import Order, StepKernels


class GpuLlamaDecoder(LayerList["GpuLlamaLayer"]):
    """Embedding, layers, last norm and head of a model that `llama.is_known`."""

    is_recordable = True

    def __init__(self, model: Any, max_model_len: int, kernels: StepKernels) -> None:
        body = model.model
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._dtype = activation_dtype(self._embedding)
        self._rotation = rotation_table(
            body.rotary_emb, max_model_len, self._embedding, self._dtype
        )
        for index, layer in enumerate(body.layers):
            body.layers[index] = GpuLlamaLayer(layer, model.config, self._dtype, kernels)
        self._layers: list[GpuLlamaLayer] = list(body.layers)
        self._head = OrderedLinears([model.lm_head])
        self._norm = AddNorm(body.norm, self._dtype, kernels, self._head.order)

    def logits(self, model_input: ModelInput) -> Tensor:
        """Run one step's tokens; [num_seqs, vocab] float32."""
        return self.head(self.last_rows(model_input))

    def last_rows(self, model_input: ModelInput) -> Tensor:
        """Run one step's tokens up to the head; [num_seqs, hidden], stored in the head's order."""
        # Whoever runs a GPU's path makes steps of that kind only.
        attention = cast("FusedAttentionStep", model_input.attention)
        residual = self._embedding.index_select(0, model_input.token_ids).to(self._dtype)
        delta: Tensor | None = None
        *earlier, last = self._layers
        for layer in earlier:
            residual, delta = layer(residual, delta, self._rotation, attention)
        # Past the last keys and values only the rows that are sampled from are needed.
        rows = model_input.logits_indices
        residual, delta = last(residual, delta, self._rotation, attention, rows=rows)
        return self._norm(residual, delta)

    def head(self, rows: Tensor) -> Tensor:
        """Go on with some of these rows; [rows, vocab] float32."""
        return self._head(rows).float()

    def linears(self) -> Iterator[LinearsInUse]:
        """Give every linear layer, those that are multiplied at once together."""
        for index, layer in enumerate(self._layers):
            yield from layer.linears(f"model.layers.{index}")
        yield _in_use(("lm_head",), self._head)


class GpuLlamaLayer(nn.Module):
    """One decoder layer."""

    def __init__(self, layer: Any, config: Any, dtype: torch.dtype, kernels: StepKernels) -> None:
        super().__init__()
        attention = layer.self_attn
        self._index: int = attention.layer_idx
        self._num_heads: int = config.num_attention_heads
        self._scale: float = attention.scaling
        self._window: int | None = sliding_window(attention, config)
        self._head_norm = _head_norm(attention, dtype) if hasattr(attention, "q_norm") else None

        self._qkv = OrderedLinears([attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = OrderedLinears([attention.o_proj])
        self._mlp = GatedMlp(layer.mlp, kernels)
        self._attention_norm = AddNorm(layer.input_layernorm, dtype, kernels, self._qkv.order)
        self._mlp_norm = AddNorm(
            layer.post_attention_layernorm, dtype, kernels, self._mlp.gate_up.order
        )

    def forward(
        self,
        residual: Tensor,
        delta: Tensor | None,
        rotation: Tensor,
        attention: FusedAttentionStep,
        *,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the residual [num_tokens, hidden], and what is to be added to it next.

        The residual that is given is changed in place; delta: what the layer before left to be
        added. rotation: the whole table. With rows [n] int64, what follows attention is computed
        for these tokens only.
        """
        attended = attention.attend_fused(
            self._index,
            self._qkv(self._attention_norm(residual, delta)),
            rotation,
            num_heads=self._num_heads,
            scale=self._scale,
            window=self._window,
            head_norm=self._head_norm,
            order=self._output.order,
        )
        if rows is not None:
            residual, attended = residual.index_select(0, rows), attended.index_select(0, rows)
        return residual, self._mlp(self._mlp_norm(residual, self._output(attended)))

    def linears(self, name: str) -> Iterator[LinearsInUse]:
        """Give the layer's linear layers; name: its own in the model."""
        for linears, parts in (
            (self._qkv, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            (self._output, ("self_attn.o_proj",)),
            (self._mlp.gate_up, ("mlp.gate_proj", "mlp.up_proj")),
            (self._mlp.down, ("mlp.down_proj",)),
        ):
            yield _in_use(tuple(f"{name}.{part}" for part in parts), linears)


class GatedMlp:
    """down(silu(gate) × up), whose gate and up come out in the order that down reads.

    That is the loader's work, which folds it into their outputs. Where it did not, columns are
    gathered: of the product of gate and up where both lie in one order, which are half as many.
    """

    def __init__(self, mlp: Any, kernels: StepKernels) -> None:
        self.gate_up = OrderedLinears([mlp.gate_proj, mlp.up_proj], are_outputs_natural=False)
        self.down = OrderedLinears([mlp.down_proj])
        self._silu_mul = kernels.silu_mul
        given, wanted = self.gate_up.output_permutation, self.down.input_permutation
        width = self.gate_up.sizes[0]
        are_alike, order = order_of_halves(given, width)
        self._before = self._after = None
        if are_alike:
            self._after = gather_between(order, wanted)
        else:
            both = None if wanted is None else torch.cat((wanted, wanted + width))
            self._before = gather_between(given, both)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [rows, hidden], stored in gate's and up's order; returns [rows, hidden]."""
        gate_up = self.gate_up(x)
        if self._before is not None:
            gate_up = self._before(gate_up)
        product = self._silu_mul(gate_up)
        if self._after is not None:
            product = self._after(product)
        return self.down(product)


class AddNorm:
    """A norm's weight, with what its result is stored for."""

    def __init__(
        self, norm: Any, dtype: torch.dtype, kernels: StepKernels, order: Order | None
    ) -> None:
        """order: of the columns that the product after it reads."""
        self._weight: Tensor = norm.weight.detach().to(dtype)
        self._eps: float = norm.variance_epsilon
        self._order = order
        self._add_norm = kernels.add_norm

    def __call__(self, residual: Tensor, delta: Tensor | None) -> Tensor:
        """Add delta to the residual in place; return that normalised, in the order."""
        return self._add_norm(residual, delta, self._weight, self._eps, self._order)


def _head_norm(attention: Any, dtype: torch.dtype) -> HeadNorm:
    return HeadNorm(
        query=attention.q_norm.weight.detach().to(dtype),
        key=attention.k_norm.weight.detach().to(dtype),
        eps=attention.q_norm.variance_epsilon,
    )


def _in_use(names: tuple[str, ...], linears: OrderedLinears) -> LinearsInUse:
    return LinearsInUse(names, linears.sizes, linears.multiply_naturally)
