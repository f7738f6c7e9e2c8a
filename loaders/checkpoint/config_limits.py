"""Refuses a model by its configuration before anything of it is built.

What is looked for: mixtures of experts, which no kernel here runs; sizes that no model has, which
would build modules for hours; and rotary settings that give NaN, or the same angle everywhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loaders.errors import SettingsError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig

# What configurations call the number of experts; one expert, or none, is a plain model.
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Where such a number stands in plain models' configurations too, one of these is false there.
_EXPERT_SWITCHES = ("is_moe", "enable_moe_block")
# The one table: plans and GGUF files are held to it, too. Far above any model there is (2026: 0.5
# million inputs to a layer, 262 144 tokens in a vocabulary, 126 layers), far below what would not
# end.
LARGEST_SIZES = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
}
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "attention_factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
_ROPE_LISTS = ("short_factor", "long_factor")
_ROPE_KEYS = ("rope_scaling", "rope_parameters")
# What stretches positions, each in a way that only the type tells.
_STRETCHING = ("factor", "alpha", *_ROPE_LISTS)


def check_config(config: PreTrainedConfig) -> None:
    """Raise UnsupportedModelError for a mixture of experts, CheckpointError for absurd values."""
    text: Any = config.get_text_config(decoder=True)
    _check_experts(text, str(config.model_type))
    check_sizes({name: _value(text, name) for name in LARGEST_SIZES})
    _check_heads(text)
    epsilon = _value(text, "rms_norm_eps")
    if epsilon is not None and not (_is_number(epsilon) and epsilon >= 0):
        raise SettingsError(f"config.json says rms_norm_eps {epsilon!r}; no norm has that")
    parameters = getattr(text, "rope_parameters", None) or {}
    for found in (parameters, *parameters.values()):
        if isinstance(found, dict):
            _check_rope(found, _rotary_size(text, found))


def _check_experts(text: Any, model_type: str) -> None:
    if any(_value(text, name) is False for name in _EXPERT_SWITCHES):
        return
    for name in _EXPERT_COUNTS:
        count = _value(text, name)
        if isinstance(count, int) and count > 1:
            raise UnsupportedModelError(
                f"{model_type} is a mixture of {count} experts ({name} in config.json), which is"
                " not run here; choose a dense model"
            )


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a size that no model has; some give each layer its own."""
    for name, largest in LARGEST_SIZES.items():
        value = config.get(name)
        for size in value if isinstance(value, list) else [value]:
            is_size = isinstance(size, int) and not isinstance(size, bool) and 0 < size <= largest
            if size is not None and not is_size:
                raise SettingsError(
                    f"config.json says {name} {str(size)[:40]}; a whole number from 1 to {largest}"
                    " was expected"
                )


def check_rope_types(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a parsed config.json that stretches positions, but not how.

    Transformers takes what has no type for an embedding that stretches nothing.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in _ROPE_KEYS:
            settings = part.get(key)
            if isinstance(settings, dict):
                nested = [value for value in settings.values() if isinstance(value, dict)]
                for one in nested or [settings]:
                    _check_rope_type(key, one)


def _check_rope_type(key: str, settings: Mapping[str, Any]) -> None:
    if settings.get("rope_type", settings.get("type")) is not None:
        return
    told = [name for name in _STRETCHING if settings.get(name) not in (None, 1)]
    if told:
        raise SettingsError(
            f"config.json has a {key} with {told[0]} {str(settings[told[0]])[:40]} and without a"
            " type; add the type that is meant, as in"
            ' {"rope_type": "linear", "factor": 4.0}, or take it out if positions are not stretched'
        )


def _value(text: Any, name: str) -> Any:
    """Look a setting up; Transformers refuses those that differ between layers of some models."""
    try:
        return getattr(text, name, None)
    except RuntimeError:
        return None


def _check_heads(text: Any) -> None:
    heads, groups = (_value(text, name) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise SettingsError(
            f"config.json says {heads} attention heads for {groups} key-value heads; each of these"
            " serves the same number"
        )


def _rotary_size(text: Any, parameters: dict[str, Any]) -> int | None:
    """How many of a head's numbers are turned; None where the configuration does not say."""
    heads = _value(text, "num_attention_heads")
    if not isinstance(heads, int) or not isinstance(text.hidden_size, int):
        return None
    head_dim = _value(text, "head_dim") or text.hidden_size // heads
    return int(head_dim * (parameters.get("partial_rotary_factor") or 1.0))


def _check_rope(parameters: dict[str, Any], rotary_size: int | None) -> None:
    for name in _ROPE_NUMBERS:
        value = parameters.get(name)
        if value is not None and not (_is_number(value) and value > 0):
            raise SettingsError(
                f"config.json says {name} {value!r} for the rotary embedding; a positive number was"
                " expected"
            )
    for name in _ROPE_LISTS:
        values = parameters.get(name)
        if values is None:
            continue
        if not isinstance(values, list) or not all(_is_number(v) and v > 0 for v in values):
            raise SettingsError(
                f"config.json has a {name} of the rotary embedding that is no list of positive"
                " numbers"
            )
        if rotary_size is not None and len(values) != rotary_size // 2:
            raise SettingsError(
                f"config.json has a {name} of {len(values)} numbers; this model's rotary embedding"
                f" has {rotary_size // 2}"
            )


def _is_number(value: object) -> bool:
    """Whether it is a finite number; JSON as Python reads it knows NaN and Infinity, too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
