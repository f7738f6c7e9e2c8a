"""Which of a GGUF file's settings are read here, which say nothing, and which are refused.

A setting that is left out in silence gives another model. So each key below the architecture's
name is either read elsewhere in this package, or known to change nothing, or known to change
something unless it has its neutral value; whatever else is there is refused by its name.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loaders.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loaders.gguf.metadata import Settings

# Read by `config` and `rope`.
_READ = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        # Norms have the one or the other, by their architecture.
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
    }
)
_READ_BY_SOME = {
    "attention.sliding_window": frozenset({"llama", "phi3", "starcoder2", "gemma2"}),
    "attn_logit_softcapping": frozenset({"gemma2"}),
    "final_logit_softcapping": frozenset({"gemma2"}),
}
# They say what the tensors say better, or nothing about what is computed. Those of experts and of
# layers that predict further tokens mean nothing without such layers, which are refused.
_SAYS_NOTHING = frozenset(
    {
        "vocab_size",
        "rope.scaling.finetuned",
        "nextn_predict_layers",
        "leading_dense_block_count",
        "interleave_moe_layer_step",
        "moe_every_n_layers",
        "experts_per_group",
    }
)
_EXPERTS = "expert_"
_ZERO: tuple[object, ...] = (0, False)
_ZERO_OR_ONE: tuple[object, ...] = (0, 1)
# With these values, or lists of nothing else, a key changes nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": _ZERO,
    "attention.max_alibi_bias": _ZERO,
    "attention.output_scale": _ZERO_OR_ONE,
    "attention.value_scale": _ZERO_OR_ONE,
    "attention.temperature_length": _ZERO,
    "attention.temperature_scale": _ZERO,
    "attention.shared_kv_layers": _ZERO,
    "attention.q_lora_rank": _ZERO,
    "attention.kv_lora_rank": _ZERO,
    "attention.key_length_mla": _ZERO,
    "attention.value_length_mla": _ZERO,
    "attn_logit_softcapping": _ZERO,
    "final_logit_softcapping": _ZERO,
    "router_logit_softcapping": _ZERO,
    "logit_scale": _ZERO_OR_ONE,
    "residual_scale": _ZERO_OR_ONE,
    "embedding_scale": _ZERO_OR_ONE,
    "embedding_length_per_layer_input": _ZERO,
    "full_attention_interval": _ZERO_OR_ONE,
    "n_deepstack_layers": _ZERO,
    "pooling_type": _ZERO,
    "rope.dimension_sections": _ZERO,
    "rope.scaling.alpha": _ZERO_OR_ONE,
    "rope.scaling.yarn_log_multiplier": _ZERO,
    "swiglu_clamp_exp": _ZERO,
    "swiglu_clamp_shexp": _ZERO,
    "swin_norm": _ZERO,
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (False,),
}
# The same as another setting, where they are alike.
_REPEATS = {
    "embedding_length_out": "embedding_length",
    "attention.key_length_swa": "attention.key_length",
    "attention.value_length_swa": "attention.value_length",
    "rope.freq_base_swa": "rope.freq_base",
    "rope.dimension_count_swa": "rope.dimension_count",
}
_GELU = ("gelu", "gelu_pytorch_tanh")
_ACTIVATIONS = {"starcoder2": _GELU, "gemma": _GELU, "gemma2": _GELU}
# What people look for when they read of a key.
_MEANINGS = {
    "attention.causal": "attention to what comes later",
    "pooling_type": "a model of embeddings or ranks, not of text",
    "rope.dimension_sections": "positions in several dimensions",
    "attention.sliding_window": "attention to the nearest tokens alone",
}


def check_keys(settings: Settings) -> None:
    """Raise UnsupportedModelError for a setting that would change what is computed here."""
    start = f"{settings.prefix}."
    for name in settings.metadata:
        key = name.removeprefix(start)
        if key != name and not _is_harmless(key, settings):
            raise _refusal(key, settings)


def _is_harmless(key: str, settings: Settings) -> bool:
    if settings.prefix in _READ_BY_SOME.get(key, _NOBODY):
        return True
    if key in _READ or key in _SAYS_NOTHING or key.startswith(_EXPERTS):
        return True
    value = settings.get(key)
    if key in _CHECKS:
        return _CHECKS[key](value, settings)
    if key in _REPEATS:
        return bool(value == settings.get(_REPEATS[key]))
    return key in _NEUTRAL and _is_one_of(value, _NEUTRAL[key])


_NOBODY: frozenset[str] = frozenset()


def _is_one_of(value: Any, neutral: tuple[object, ...]) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(item in neutral for item in values)


def _is_usual_scale(value: Any, settings: Settings) -> bool:
    """Whether queries are scaled by 1 / sqrt(head size), as they are where nothing is said."""
    size = settings.get("attention.key_length")
    if size is None:
        hidden, heads = settings.get("embedding_length"), settings.get("attention.head_count")
        if not (type(hidden) is type(heads) is int) or heads < 1:
            return False
        size = hidden // heads
    if type(value) not in (int, float) or type(size) is not int or size < 1:
        return False
    return value == 0 or math.isclose(value, size**-0.5, rel_tol=1e-5)


def _is_wide_window(value: Any, settings: Settings) -> bool:
    """Whether a window takes in the whole context, or there is none."""
    context = settings.get("context_length")
    return value == 0 or (type(value) is type(context) is int and value >= context > 0)


def _is_own_pattern(value: Any, settings: Settings) -> bool:
    """Whether the layers with windows are those that the architecture has anyway."""
    return _is_one_of(value, (2,) if settings.prefix == "gemma2" else _ZERO)


def _is_own_activation(value: Any, settings: Settings) -> bool:
    return value in _ACTIVATIONS.get(settings.prefix, ("silu", "swiglu"))


_CHECKS: Mapping[str, Callable[[Any, Settings], bool]] = {
    "attention.scale": _is_usual_scale,
    "attention.sliding_window": _is_wide_window,
    "attention.sliding_window_pattern": _is_own_pattern,
    "hidden_activation": _is_own_activation,
}


def _refusal(key: str, settings: Settings) -> UnsupportedModelError:
    name, value = settings.name(key), str(settings.get(key))[:40]
    if key in _NEUTRAL or key in _CHECKS or key in _REPEATS:
        meaning = f" ({_MEANINGS[key]})" if key in _MEANINGS else ""
        return UnsupportedModelError(
            f"the GGUF file's {name} is {value}{meaning}, which {settings.prefix} models are not"
            " served with; choose a file without it"
        )
    return UnsupportedModelError(
        f"the GGUF file says {name} ({value}), which is not known here and may change what the"
        " model computes; choose a file without it"
    )
