"""Turns a checkpoint's config.json into a Transformers config that cannot run anyone's code.

Repositories may name Python files, kernels and other repositories in their config. For a model type
that Transformers knows none of that is needed: it is taken out and logged. For any other it is
refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loaders.checkpoint.claims import check_lists, claimed_sizes
from loaders.checkpoint.config_limits import check_config, check_rope_types, check_sizes
from loaders.checkpoint.config_repairs import drop_pad_id_without_row, repair_config
from loaders.checkpoint.files import read_json
from loaders.errors import SettingsError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = structlog.get_logger(__name__)

# Keys that name code, kernels, files or repositories (CVE-2026-4372 ran code through one of these).
UNSAFE_KEYS = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "custom_generate",
        "custom_pipelines",
        "fusion_config",
        "kernel_config",
        "use_kernels",
        "transformers_weights",
        "base_model_name_or_path",
        "_name_or_path",
        "attn_implementation",
        "experts_implementation",
    }
)
_UNSAFE_PREFIXES = ("_attn_implementation", "_experts_implementation")
MAX_CONFIG_DEPTH = 32
# What Transformers and compressed-tensors (until October 2024) call the quantisation's settings.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
_MAX_SHOWN = 40  # keys that one line of the log names


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json and take out what could run code, at any depth; each removal is logged."""
    path = folder / "config.json"
    if not path.exists():
        raise SettingsError(f"{folder} holds no config.json, so it is no Transformers checkpoint")
    config, removed = scrub_config(read_json(path))
    if removed:
        shown = removed[:_MAX_SHOWN] + ["…"] * (len(removed) > _MAX_SHOWN)
        log.info("config_keys_removed", keys=shown, reason="no code from a checkpoint is run")
    return config


def scrub_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take out what could run code, at any depth; return what is left, and what was removed."""
    removed: list[str] = []
    kept = _scrub(config, removed, path="", depth=0)
    return dict(kept), sorted(removed)


def _scrub(value: Any, removed: list[str], *, path: str, depth: int) -> Any:
    if depth > MAX_CONFIG_DEPTH:
        raise SettingsError(f"config.json is nested deeper than {MAX_CONFIG_DEPTH} levels")
    if isinstance(value, list):
        return [_scrub(item, removed, path=f"{path}[]", depth=depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        name = f"{path}.{key}" if path else str(key)
        if key in UNSAFE_KEYS or str(key).startswith(_UNSAFE_PREFIXES):
            removed.append(name)
        else:
            kept[key] = _scrub(item, removed, path=name, depth=depth + 1)
    return kept


def make_model_config(config: dict[str, Any]) -> PreTrainedConfig:
    """Build the native config class for a scrubbed config.json, without its quantisation.

    Raises UnsupportedModelError for a model type that Transformers has no causal language model
    for and for mixtures of experts, CheckpointError for values that make no sense.
    """
    # Before a class makes lists of that length.
    check_sizes(claimed_sizes(config))
    check_lists(config)
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"config.json names the model type {model_type!r}, for which Transformers has no"
            " native causal language model; code from the checkpoint is never run"
        )
    check_rope_types(config)
    repaired = repair_config(config)
    kept = {key: value for key, value in repaired.items() if key not in QUANTIZATION_KEYS}
    try:
        made = CONFIG_MAPPING[model_type].from_dict(kept)
    except Exception as error:  # its validators raise kinds that belong to other libraries
        raise SettingsError(
            f"config.json is not a valid {model_type} configuration: {type(error).__name__}:"
            f" {error}"
        ) from error
    if not isinstance(made, PreTrainedConfig):
        raise SettingsError(f"config.json is not a valid {model_type} configuration")
    check_config(made)
    drop_pad_id_without_row(made)
    return made
