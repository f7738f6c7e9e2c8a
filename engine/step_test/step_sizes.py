"""The sizes by which a model's steps are tested: its own, but for the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.attention.kv_cache import (
    STORED_AS,
    attention_dtype,
    head_dim,
    num_kv_heads,
    resolve_kv_dtype,
)
from engine.config import KVDtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from engine.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSizes:
    """What kernels between linear layers may depend on."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    windows: tuple[int | None, ...]  # that layers have; None sees everything
    has_head_norm: bool
    dtype: torch.dtype  # of activations
    kept_as: torch.dtype  # keys and values
    is_scaled: bool  # whether the cache keeps a scale for each head
    block_size: int
    max_model_len: int
    max_num_seqs: int
    device: torch.device

    @classmethod
    def of(cls, model: PreTrainedModel, config: EngineConfig) -> StepSizes:
        text: Any = model.config.get_text_config(decoder=True)
        kv_dtype = resolve_kv_dtype(model, config.kv_dtype)
        return cls(
            hidden=text.hidden_size,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            num_heads=text.num_attention_heads,
            num_kv_heads=num_kv_heads(model.config),
            head_dim=head_dim(model.config),
            eps=getattr(text, "rms_norm_eps", None) or 1e-6,
            windows=_windows(text),
            has_head_norm=text.model_type == "qwen3",
            dtype=attention_dtype(model),
            kept_as=STORED_AS[kv_dtype],
            is_scaled=kv_dtype is KVDtype.FP8,
            block_size=config.block_size,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            device=model.device,
        )


def _windows(text: Any) -> tuple[int | None, ...]:
    window = getattr(text, "sliding_window", None)
    if window is None or getattr(text, "use_sliding_window", True) is False:
        return (None,)
    kinds = set(getattr(text, "layer_types", None) or ("sliding_attention",))
    return (window,) if kinds == {"sliding_attention"} else (None, window)
