"""Reads compressed-tensors' settings: groups of layers, and how the weights of each are stored.

Which layers are packed follows from the tensors, so `ignore` needs no reading. Whatever is more
than whole-number weights in the "pack-quantized" format is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.errors import CheckpointError, UnsupportedQuantizationError
from loaders.quantization.layouts.compressed_tensors import PackQuantized
from loaders.quantization.name_patterns import check_pattern
from loaders.quantization.setting_values import read_values

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "compressed-tensors"
FORMAT = "pack-quantized"
_READ = f"weights of 2 to 8 bits in the format {FORMAT!r} are read"
KNOWN_SETTINGS = frozenset(
    {
        "quant_method", "format", "quantization_status", "config_groups", "ignore", "version",
        "kv_cache_scheme", "transform_config", "moe_sparsity_config", "sparsity_config",
        "global_compression_ratio",
    }
)  # fmt: skip
# The class that a group of layers is named by; every packed layer is one.
_LINEAR = "Linear"
# Parts of the settings that change what a model computes beside its weights.
_OTHER_PARTS = {
    "kv_cache_scheme": "quantises the KV cache",
    "transform_config": "rotates weights or activations",
    "moe_sparsity_config": "leaves experts out",
}


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """How some layers are packed."""

    # Of their names (`loaders.quantization.name_patterns`); None: every linear layer.
    pattern: str | None
    bits: int
    group_size: int  # -1 is the whole input dimension
    layout: PackQuantized
    has_act_order: bool


def read_groups(settings: Mapping[str, Any], source: str) -> tuple[LayerGroup, ...]:
    """Return the groups of layers, the most specific first.

    Raises UnsupportedQuantizationError for what is not read, CheckpointError for settings that
    make no sense.
    """
    _check_whole(settings, source)
    schemes = settings.get("config_groups")
    if not isinstance(schemes, dict) or not schemes:
        raise CheckpointError(f"{source} has no config_groups to say how layers are packed")
    found: list[tuple[int, LayerGroup]] = []
    for name, scheme in schemes.items():
        if not isinstance(scheme, dict) or not isinstance(scheme.get("weights"), dict):
            raise UnsupportedQuantizationError(
                f"{source} has the group {name!r} without settings for weights; {_READ}"
            )
        _check_scheme(scheme, name, source)
        targets = scheme.get("targets")
        if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
            raise CheckpointError(f"{source} has the group {name!r} without a list of targets")
        for target in targets:
            rank, pattern = _pattern(target, source)
            found.append((rank, _layer_group(scheme["weights"], pattern, name, source)))
    return tuple(group for _, group in sorted(found, key=lambda entry: entry[0]))


def _check_whole(settings: Mapping[str, Any], source: str) -> None:
    if settings.get("format") != FORMAT:
        raise UnsupportedQuantizationError(
            f"{source} names the compressed-tensors format {settings.get('format')!r}; {_READ}"
        )
    for key, effect in _OTHER_PARTS.items():
        if settings.get(key):
            raise UnsupportedQuantizationError(f"{source} has a {key}, which {effect}; {_READ}")
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedQuantizationError(
            f"{source} stores sparse weights ({sparsity.get('format')!r}); {_READ}"
        )


def _check_scheme(scheme: Mapping[str, Any], name: str, source: str) -> None:
    where = f"{source} has the group {name!r}"
    for key in ("input_activations", "output_activations"):
        if scheme.get(key):
            raise UnsupportedQuantizationError(f"{where}, which quantises {key}; {_READ}")
    if scheme.get("format") not in (None, FORMAT):
        raise UnsupportedQuantizationError(f"{where} in the format {scheme['format']!r}; {_READ}")
    kind = scheme["weights"].get("type", "int")
    if kind != "int":
        raise UnsupportedQuantizationError(f"{where} with weights of type {kind!r}; {_READ}")
    if scheme["weights"].get("dynamic"):
        raise UnsupportedQuantizationError(f"{where} with weights quantised while running; {_READ}")


def _pattern(target: str, source: str) -> tuple[int, str | None]:
    """Rank a target as compressed-tensors does: layers by name, by pattern, by class."""
    if target == _LINEAR:
        return 2, None
    if not target.startswith("re:"):
        return 0, re.escape(target) + "$"
    pattern = target.removeprefix("re:")
    try:
        check_pattern(pattern)
    except CheckpointError as error:
        raise CheckpointError(f"{source} has an unreadable target: {error}") from error
    return 1, pattern


def _layer_group(
    weights: Mapping[str, Any], pattern: str | None, name: str, source: str
) -> LayerGroup:
    where = f"{source} has the group {name!r}"
    weights = read_values(weights, where)
    bits, group_size = weights.get("num_bits"), weights.get("group_size")
    if not isinstance(bits, int) or not isinstance(group_size, int | None):
        raise CheckpointError(f"{where} without whole numbers for num_bits and group_size")
    strategy = weights.get("strategy") or _usual_strategy(group_size)
    if strategy not in ("group", "channel", "tensor"):
        raise UnsupportedQuantizationError(
            f"{where} with the strategy {strategy!r}; group, channel and tensor are read"
        )
    if strategy == "group" and group_size is None:
        raise CheckpointError(f"{where} with groups of no size")
    has_zero_points = not weights.get("symmetric", True)
    if strategy == "tensor" and has_zero_points:
        raise UnsupportedQuantizationError(
            f"{where} with one zero point for a whole layer, which is not read"
        )
    if strategy != "group" and group_size not in (None, -1):
        raise CheckpointError(
            f"{where} with the strategy {strategy!r} and group_size {group_size}, of which one"
            " must be wrong: only the strategy 'group' has groups"
        )
    return LayerGroup(
        pattern=pattern,
        bits=bits,
        group_size=group_size if strategy == "group" and group_size is not None else -1,
        layout=_layout(strategy, has_zero_points=has_zero_points),
        has_act_order=weights.get("actorder") in ("group", "dynamic"),
    )


def _layout(strategy: str, *, has_zero_points: bool) -> PackQuantized:
    if strategy == "tensor":
        return PackQuantized.ONE_SCALE
    return PackQuantized.ZERO_POINTS if has_zero_points else PackQuantized.SYMMETRIC


def _usual_strategy(group_size: int | None) -> str:
    if group_size is None:
        return "tensor"
    return "channel" if group_size == -1 else "group"
