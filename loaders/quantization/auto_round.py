"""Says auto-round's settings in the words of the layout it packed in: GPTQ's or AWQ's.

auto-round has no layout of its own for whole-number weights; `packing_format` names the one used.
What it stores in others (floating point, rotated or quantised activations) is refused by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from loaders.errors import CheckpointError, UnsupportedQuantizationError
from loaders.quantization.setting_values import read_values

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ("auto-round", "auto_round", "intel/auto-round")
# Beside auto-round's own formats its config says which of ours reads it. Formats with "gptq" store
# zero points less one, as GPTQ does; its own and GPTQModel's store them as they are.
_SETTINGS_OF: dict[str, dict[str, str]] = {
    "auto_round": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "auto_round:gptqmodel": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "auto_round:gptq": {"quant_method": "gptq", "checkpoint_format": "gptq"},
    "auto_round:auto_gptq": {"quant_method": "gptq", "checkpoint_format": "gptq"},
    # What the first releases called it, before their own name stood in front.
    "gptq": {"quant_method": "gptq", "checkpoint_format": "gptq"},
    "auto_round:awq": {"quant_method": "awq", "version": "gemm"},
    "auto_round:auto_awq": {"quant_method": "awq", "version": "gemm"},
}
_KEPT = ("bits", "group_size", "sym", "desc_act", "lm_head", "pack_dtype")
_PATTERN_CHARACTERS = frozenset(r"\*+?^$()[]{}|")  # a dot stands in plain names, too
_WIDEST_QUANTISED = 8  # more bits in a layer's settings mean that it was left alone


def translate(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the settings that GPTQ or AWQ would have for the same tensors.

    Raises UnsupportedQuantizationError for what has no such layout.
    """
    asked = settings.get("packing_format", settings.get("backend"))
    layout = _SETTINGS_OF.get(_without_kernel(str(asked)))
    if layout is None:
        raise UnsupportedQuantizationError(
            f"{source} is auto-round's and names the packing format {asked!r}; read are"
            f" {', '.join(_SETTINGS_OF)}"
        )
    _check_scheme(settings, source)
    return {
        **layout,
        **{key: settings[key] for key in _KEPT if settings.get(key) is not None},
        "dynamic": _rules(settings.get("extra_config"), source),
    }


def _without_kernel(packing_format: str) -> str:
    """Leave out the kernel that some versions name last, as auto_round:gptq:exllamav2."""
    parts = packing_format.split(":")
    return ":".join(parts[: 1 if parts[0] == "gptq" else 2])


def _check_scheme(settings: Mapping[str, Any], where: str) -> None:
    data_type = settings.get("data_type", "int")
    if data_type not in ("int", "int_sym", "int_asym"):
        raise UnsupportedQuantizationError(
            f"{where} is auto-round's with weights of type {data_type!r}; whole numbers (int) are"
            " read"
        )
    act_bits = settings.get("act_bits")
    if isinstance(act_bits, int) and act_bits <= _WIDEST_QUANTISED:
        raise UnsupportedQuantizationError(
            f"{where} is auto-round's with activations of {act_bits} bits; only weights may be"
            " quantised"
        )
    for key in ("rotation_config", "spinquant_config"):
        if settings.get(key):
            raise UnsupportedQuantizationError(
                f"{where} is auto-round's with a {key}: its weights are rotated, which is not read"
            )


def _rules(extra: object, source: str) -> dict[str, dict[str, Any]]:
    """Turn `extra_config` into rules of GPTQModel's kind: layers by name, then by pattern."""
    if not extra:
        return {}
    if not isinstance(extra, dict) or not all(isinstance(own, dict) for own in extra.values()):
        raise CheckpointError(f"{source} has an extra_config that is no object of objects")
    by_name, by_pattern = {}, {}
    for name, written in extra.items():
        where = f"the rule for {name} in {source}"
        own = read_values(written, where)
        is_dense = own.get("bits", 0) > _WIDEST_QUANTISED
        if not is_dense:  # a layer that was left alone has weights of type float
            _check_scheme(own, where)
        sign = "-" if is_dense else "+"
        kept = {key: value for key, value in own.items() if key in ("bits", "group_size", "sym")}
        by_name[f"{sign}:{re.escape(name)}$"] = kept
        # What can be no plain name is a pattern that is looked for anywhere in a layer's name; of a
        # plain name the last parts are enough, but whole ones: mlp.gate is no mlp.gate_proj.
        is_pattern = bool(_PATTERN_CHARACTERS.intersection(name))
        found = f".*?(?:{name})" if is_pattern else rf".*\.{re.escape(name)}$"
        by_pattern[f"{sign}:{found}"] = kept
    return by_name | by_pattern
