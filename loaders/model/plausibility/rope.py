"""Whether every setting of the rotary embedding is one that its type uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedConfig

_EVERY_TYPE = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_FIRST_LENGTH = "original_max_position_embeddings"
# What Transformers reads, by type.
_OWN = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset(
        {
            "factor",
            _FIRST_LENGTH,
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
    "longrope": frozenset(
        {"short_factor", "long_factor", _FIRST_LENGTH, "attention_factor", "factor"}
    ),
    "llama3": frozenset({"factor", _FIRST_LENGTH, "low_freq_factor", "high_freq_factor"}),
    "proportional": frozenset({"factor"}),
}
# Hunyuan's class reads a number of its own of that type, its files name YaRN's beside it.
_OF_MODELS = {
    ("hunyuan_v1_dense", "dynamic"): frozenset(
        {"alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
    ),
}
# Says how long a model was trained before its positions were stretched; it stretches nothing, nor
# does who made it.
_NOTES = frozenset({_FIRST_LENGTH, "finetuned"})


def check_rope(config: PreTrainedConfig) -> list[Suspicion]:
    """Say which settings of the rotary embedding nothing reads."""
    text_config = config.get_text_config(decoder=True)
    allowed = frozenset(getattr(text_config, "ignore_keys_at_rope_validation", None) or ())
    found = []
    for parameters in _parameters(getattr(text_config, "rope_parameters", None)):
        kind = str(parameters.get("rope_type", "default"))
        if kind not in _OWN:
            continue
        models_own = _OF_MODELS.get((text_config.model_type, kind), frozenset())
        used = _EVERY_TYPE | _OWN[kind] | models_own | _NOTES | allowed
        unused = sorted(
            key for key in parameters.keys() - used if _says_something(key, parameters[key])
        )
        if unused:
            names = ", ".join(f"{key}={parameters[key]}" for key in unused)
            found.append(
                Suspicion(
                    "unused_rope_settings",
                    f"config.json gives the rotary embedding of type {kind!r} {names}, which this"
                    " type does not use; another type seems to be meant",
                )
            )
    return found


def _parameters(parameters: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Give the one set of settings, or those of each type of layer."""
    if not parameters:
        return
    own = [value for value in parameters.values() if isinstance(value, dict)]
    if own:
        yield from own
    else:
        yield parameters


def _says_something(key: str, value: object) -> bool:
    """Whether a setting would change anything; a factor of one stretches nothing."""
    return value is not None and not (key.endswith("factor") and value == 1)
