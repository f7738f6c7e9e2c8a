"""How attention asks for what it needs, and how Transformers' own layers come to use it.

The layers see `AttentionStep` only; what stands behind it is `paged`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from transformers import AttentionInterface

from engine.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.attention.native_step import NativeStep
    from engine.kernels.step_kernels import HeadNorm, Order

ATTENTION_NAME = "paged"


class AttentionStep(Protocol):
    """What a decoder layer needs of the step it runs in."""

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key_value: Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Store the new keys and values, then attend.

        query: [num_tokens, heads, head_dim]; key_value: [num_tokens, 2, kv_heads, head_dim].
        window: how many tokens back each one sees, itself included; None for all.
        Returns [num_tokens, heads, head_dim].
        """


@runtime_checkable
class FusedAttentionStep(AttentionStep, Protocol):
    """A step that takes queries, keys and values as their product leaves them."""

    def attend_fused(
        self,
        layer_index: int,
        qkv: Tensor,
        rotation: Tensor,
        *,
        num_heads: int,
        scale: float,
        window: int | None,
        head_norm: HeadNorm | None,
        order: Order | None,
    ) -> Tensor:
        """Rotate, store keys and values, then attend; arguments as in `StepKernels`.

        qkv: [num_tokens, (num_heads + 2 * kv_heads) * head_dim]. Returns [num_tokens, num_heads *
        head_dim], its columns stored in the order.
        """


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a model needs for one forward pass."""

    token_ids: Tensor  # [num_tokens] int64
    position_ids: Tensor  # [num_tokens] int64
    # [num_rows] int64: the tokens after which logits are needed; None: after each of them.
    logits_indices: Tensor | None
    attention: AttentionStep | NativeStep  # the latter for layers of C++ kernels, and them alone
    # Whether all tokens are in pieces of prompts, whose products go the way of many rows.
    has_pieces: bool = False
    is_for_cache: bool = False  # nothing is sampled; what it leaves in the cache is all that counts


# Keywords that Transformers' layers pass on and that don't change what attention computes.
_HARMLESS = frozenset(
    {
        "layer_idx",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


def register() -> None:
    """Make `model.set_attn_implementation("paged")` possible.

    No mask is registered with it. Transformers then makes none; beside one of ours that gives None
    it looks for packed sequences first, and waits for the device to tell.
    """
    AttentionInterface.register(ATTENTION_NAME, _paged_attention)


def _paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: AttentionStep | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as Transformers' layers ask for it: query [1, heads, num_tokens, head_dim]."""
    if paged is None:
        raise UnsupportedArchitectureError(
            f"{type(module).__name__} is not told where keys and values are kept: the layers of"
            " this model in Transformers do not hand on what attention is called with; the engine"
            " cannot run it"
        )
    refused = {name for name, value in others.items() if value is not None} - _HARMLESS
    if attention_mask is not None:
        refused.add("attention_mask")
    if is_causal is False or not getattr(module, "is_causal", True):
        refused.add("is_causal=False")
    if dropout:
        refused.add("dropout")
    if refused:
        raise UnsupportedArchitectureError(
            f"{type(module).__name__} asks attention for {', '.join(sorted(refused))}, which paged"
            " attention does not know"
        )
    if value.shape != key.shape:
        raise UnsupportedArchitectureError(
            f"{type(module).__name__} has keys of shape {tuple(key.shape)} and values of shape"
            f" {tuple(value.shape)}; paged attention needs them alike"
        )
    attended = paged.attend(
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        torch.stack((key[0], value[0])).permute(2, 0, 1, 3),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
    )
    return attended.unsqueeze(0), None
