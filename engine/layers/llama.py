"""One decoder for the Llama family, Llama, Mistral, Qwen2 and Qwen3, as the CPU runs it.

They differ in biases (which the weights bring along), in norms of queries and keys (Qwen3) and in
sliding windows (Mistral, Qwen2). On CPU everything but the linear layers is float32, whatever the
model was loaded in; elsewhere it has the model's dtype.

For one stream on two cores (hidden 576, 9 heads, 3 key heads, 64 tokens cached, 4-bit weights,
2026-11) a layer's linears take 116 µs and everything else 78, of which attention 24; the figures
below are what decided that. Batch-invariant: norms, rotation, activation and residual are computed
row by row in a fixed order. Linears and attention are if theirs are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from engine.layers.truncation import LayerList
from engine.layers.weights import JoinedLinears, LinearsInUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.attention.interface import AttentionStep, ModelInput

_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def is_known(model: PreTrainedModel) -> bool:
    """Whether `LlamaDecoder` computes what this model does."""
    config: Any = model.config
    return (
        type(model) in _FAMILIES  # a subclass may compute something else
        and config.hidden_act in ("silu", "swish")
        and config.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
    )


class LlamaDecoder(LayerList["LlamaLayer"]):
    """Embedding, layers, last norm and head, without Transformers' own forward around them.

    That forward costs 0.24 ms a step in wrappers and 0.05 ms in masks, 5 % of a step.
    """

    is_recordable = True

    def __init__(self, model: Any, max_model_len: int, *, is_batch_invariant: bool) -> None:
        body = model.model
        # Looked up in the dtype it is stored in and widened by the row: a float32 copy of SmolLM2's
        # would take 113 MB.
        self._embedding = body.embed_tokens.weight.detach()
        self._dtype = activation_dtype(self._embedding)
        self._rotation = rotation_table(
            body.rotary_emb, max_model_len, self._embedding, self._dtype
        )
        for index, layer in enumerate(body.layers):
            body.layers[index] = LlamaLayer(  # lets the old one go
                layer, model.config, self._dtype, is_batch_invariant=is_batch_invariant
            )
        self._layers = list(body.layers)
        self._norm = RMSNorm(body.norm, self._dtype)
        self._head = JoinedLinears([model.lm_head], is_batch_invariant=is_batch_invariant)

    def logits(self, model_input: ModelInput) -> Tensor:
        """Run one step's tokens; [num_seqs, vocab] float32."""
        residual = self._embedding.index_select(0, model_input.token_ids).to(self._dtype)
        rotation = self._rotation.index_select(0, model_input.position_ids)
        cos, sin = rotation[:, :1], rotation[:, 1:]
        *earlier, last = self._layers
        has_pieces = model_input.has_pieces
        for layer in earlier:
            layer(residual, cos, sin, model_input.attention, has_pieces=has_pieces)
        # Past the last keys and values only the rows that are sampled from are needed: the head
        # costs as much as eight layers.
        rows = model_input.logits_indices
        residual = last(residual, cos, sin, model_input.attention, rows=rows, has_pieces=has_pieces)
        if model_input.is_for_cache:
            nothing: Tensor = residual.new_empty(0, sum(self._head.sizes))
            return nothing
        return self._head(self._norm(residual)).float()

    def linears(self) -> Iterator[LinearsInUse]:
        """Give every linear layer, those that are multiplied at once together."""
        for index, layer in enumerate(self._layers):
            yield from layer.linears(f"model.layers.{index}")
        yield LinearsInUse(("lm_head",), self._head.sizes, self._head)


class LlamaLayer(nn.Module):
    """One decoder layer."""

    def __init__(
        self, layer: Any, config: Any, dtype: torch.dtype, *, is_batch_invariant: bool
    ) -> None:
        super().__init__()
        join = partial(JoinedLinears, is_batch_invariant=is_batch_invariant)
        attention, mlp = layer.self_attn, layer.mlp
        self._index: int = attention.layer_idx
        self._num_heads: int = config.num_attention_heads
        self._head_dim: int = attention.head_dim
        self._scale: float = attention.scaling
        self._window: int | None = sliding_window(attention, config)

        self._attention_norm = RMSNorm(layer.input_layernorm, dtype)
        self._head_norm = (
            HeadNorm(attention, config, dtype) if hasattr(attention, "q_norm") else None
        )
        self._qkv = join([attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = join([attention.o_proj])
        self._mlp_norm = RMSNorm(layer.post_attention_layernorm, dtype)
        self._gate_up = join([mlp.gate_proj, mlp.up_proj])
        self._down = join([mlp.down_proj])

    def forward(
        self,
        residual: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention: AttentionStep,
        *,
        rows: Tensor | None = None,
        has_pieces: bool = False,
    ) -> Tensor:
        """Add to the residual [num_tokens, hidden] in place, and return it.

        cos, sin: [num_tokens, 1, head_dim]. With rows [n] int64, what follows attention is computed
        for these tokens only: a fresh [n, hidden]. has_pieces: whether all are in pieces of
        prompts.
        """
        joined = self._qkv(self._attention_norm(residual), has_pieces=has_pieces)
        heads = joined.view(residual.shape[0], -1, self._head_dim)
        query, key_value = self._rotate(heads, cos, sin)
        attended = attention.attend(
            self._index, query, key_value, scale=self._scale, window=self._window
        )
        attended = attended.flatten(1)
        if rows is not None:
            residual, attended = residual.index_select(0, rows), attended.index_select(0, rows)
            has_pieces = False  # as many as are asked for
        residual.add_(self._output(attended, has_pieces=has_pieces))

        inner = self._gate_up(self._mlp_norm(residual), has_pieces=has_pieces)
        gate, up = inner.chunk(2, dim=1)
        inner = functional.silu(gate).mul_(up)
        return residual.add_(self._down(inner, has_pieces=has_pieces))

    def linears(self, name: str) -> Iterator[LinearsInUse]:
        """Give the layer's linear layers; name: its own in the model."""
        for joined, parts in (
            (self._qkv, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            (self._output, ("self_attn.o_proj",)),
            (self._gate_up, ("mlp.gate_proj", "mlp.up_proj")),
            (self._down, ("mlp.down_proj",)),
        ):
            yield joined.in_use(*(f"{name}.{part}" for part in parts))

    def _rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Split heads [num_tokens, query + key + value, head_dim], rotating queries and keys.

        Keys and values stay neighbours, so that the cache takes both in one call.
        """
        num_kv_heads = (heads.shape[1] - self._num_heads) // 2
        turning = heads.narrow(1, 0, self._num_heads + num_kv_heads)
        if self._head_norm is not None:
            self._head_norm(turning)
        # The second half's sine is positive, the first's negative (see rotation_table). 5.6 µs;
        # rotating the halves one by one into place took 14.
        swapped = turning.roll(self._head_dim // 2, -1)
        turning.mul_(cos).addcmul_(swapped, sin)
        query, key_value = heads.split_with_sizes((self._num_heads, 2 * num_kv_heads), dim=1)
        return query, key_value.view(-1, 2, num_kv_heads, self._head_dim)


class RMSNorm:
    """x / rms(x) * weight, over the last dimension."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self.weight: Tensor = norm.weight.detach().to(dtype)
        self._eps: float = norm.variance_epsilon
        self._eps_tensor = self.weight.new_full((1,), self._eps)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., size]; returns a fresh tensor."""
        return scale_to_unit(x, self._eps, self._eps_tensor).mul_(self.weight)


class HeadNorm:
    """Qwen3's norms of each query head and each key head, in one pass over both."""

    def __init__(self, attention: Any, config: Any, dtype: torch.dtype) -> None:
        query, key = RMSNorm(attention.q_norm, dtype), RMSNorm(attention.k_norm, dtype)
        self._weight = torch.cat(
            [
                query.weight.expand(config.num_attention_heads, -1),
                key.weight.expand(config.num_key_value_heads, -1),
            ]
        )
        self._eps: float = config.rms_norm_eps
        self._eps_tensor = self._weight.new_full((1,), self._eps)

    def __call__(self, heads: Tensor) -> None:
        """heads: [num_tokens, query + key heads, head_dim], changed in place."""
        heads.copy_(scale_to_unit(heads, self._eps, self._eps_tensor).mul_(self._weight))


def scale_to_unit(x: Tensor, eps: float, eps_tensor: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + eps), over the last dimension."""
    if x.device.type != "cpu":
        return functional.rms_norm(x, x.shape[-1:], eps=eps)
    # 6.1 µs a row of 576, 17.9 for 128 rows; functional.rms_norm, put together from small
    # operations on CPU, takes 9.5 and 26.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(eps_tensor, norm, norm, value=1 / x.shape[-1]).rsqrt_()


def activation_dtype(embedding: Tensor) -> torch.dtype:
    """What layers compute in: float32 on CPU, elsewhere what the model was loaded in."""
    return torch.float32 if embedding.device.type == "cpu" else embedding.dtype


def rotation_table(
    rotary: Any,
    num_positions: int,
    like: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Cosine and signed sine of every position, [num_positions, 2, head_dim].

    Made once by the model's own module, so every rope type that does not look at the batch is
    right. The sine of the first half is negated: what `rotate_half` does to the values, done to
    the table. A step looks its rows up in 2 µs, where computing them takes 20.
    """
    positions = torch.arange(num_positions, device=like.device).unsqueeze(0)
    with torch.inference_mode():
        cos, sin = rotary(torch.empty(0, dtype=torch.float32, device=like.device), positions)
        half = cos.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return torch.stack((cos[0], signed[0]), dim=1).to(dtype)


def sliding_window(attention: Any, config: Any) -> int | None:
    """How many tokens back this layer sees."""
    if hasattr(attention, "sliding_window"):  # Qwen: its own, by layer
        return attention.sliding_window  # type: ignore[no-any-return]
    if config.model_type == "mistral":  # all layers alike
        return config.sliding_window  # type: ignore[no-any-return]
    return None
