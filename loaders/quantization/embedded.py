"""Finds a quantisation's settings within config.json, under whichever name they were put there.

Transformers writes `quantization_config`; compressed-tensors wrote `compression_config` until
October 2024, at first with `quantization_config` and `sparsity_config` inside; models of several
parts may keep them in the settings of the part that writes text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loaders.checkpoint.config import QUANTIZATION_KEYS
from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXT_PART = "text_config"


def embedded_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what config.json says of the quantisation, None where it says nothing.

    Raises CheckpointError where it is no object, or where two places say different things.
    """
    found: dict[str, dict[str, Any]] = {}
    text_part = config.get(_TEXT_PART)
    parts = {"": config, f"{_TEXT_PART}.": text_part if isinstance(text_part, dict) else {}}
    for part, values in parts.items():
        for key in QUANTIZATION_KEYS:
            settings = values.get(key)
            if settings is not None and not isinstance(settings, dict):
                raise CheckpointError(f"config.json's {part}{key} is not an object")
            if settings:
                found[part + key] = _flattened(settings)
    names = list(found)
    for name in names[1:]:
        if found[name] != found[names[0]]:
            raise CheckpointError(
                f"config.json's {names[0]} and its {name} differ; keep the one that is the weights'"
            )
    return found[names[0]] if names else None


def _flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    inner = settings.get("quantization_config")
    if not isinstance(inner, dict):
        return dict(settings)
    rest = {key: value for key, value in settings.items() if key != "quantization_config"}
    return {**rest, **inner}
