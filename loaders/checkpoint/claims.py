"""Holds the counts that a config.json claims against what its tensors can bear.

Before any class of Transformers sees the configuration: they make lists as long as a number says,
and models as large. Shapes are compared one by one once the model's skeleton stands, still without
memory (`loaders.model.skeleton`).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loaders.checkpoint.config_limits import LARGEST_SIZES
from loaders.errors import CheckpointError, TensorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loaders.checkpoint.files import TensorInfo

# What lists are made of where a configuration has such a number, and how long they may become.
_LIST_MAKERS = (
    (re.compile(r"layer|dense_replace|attention_types"), LARGEST_SIZES["num_hidden_layers"]),
    (re.compile(r"num_labels"), 1 << 16),  # a language model has none; Transformers makes the list
)
_LAYER = re.compile(r"(?P<family>(?:\S*?\.)?(?:layers|h|blocks|block))\.(?P<index>\d{1,9})\.")
# Models have up to 126 layers; to load 512 small packed ones takes 9 s, 4 096 take minutes.
_MOST_BUILT = 512
_WIDTHS = ("vocab_size", "hidden_size", "intermediate_size")
# How many numbers one of a packed tensor can hold: 32 bits are 16 of 2 bits.
_LARGEST_PACKING = {"I64": 32, "I32": 16, "U32": 16, "I16": 8, "U16": 8, "U8": 4, "I8": 4}


def check_lists(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for numbers, at any depth, that would make endless lists."""
    for name, number in _numbers(config, name=""):
        key = name.rpartition(".")[2]
        for pattern, most in _LIST_MAKERS:
            if pattern.search(key) and number > most:
                raise CheckpointError(
                    f"config.json says {name} {str(number)[:40]}; at most {most} was expected"
                )


def check_claims(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise TensorError where the tensors cannot be those of such a model.

    config: the parsed config.json. tensors: all of them, from the headers.
    """
    claimed = claimed_sizes(config)
    _check_layers(claimed.get("num_hidden_layers"), tensors)
    _check_depth(claimed.get("num_hidden_layers"))
    widest = max(tensors.values(), key=_width, default=None)
    for name in _WIDTHS:
        size = claimed.get(name)
        if isinstance(size, int) and widest is not None and size > _width(widest):
            raise TensorError(
                f"config.json says {name} {size}, and no tensor is as wide: the widest is"
                f" {widest.name}, {list(widest.shape)}; the two are from different models"
            )


def claimed_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of the language model by Transformers' usual names, where it has them."""
    text = config.get("text_config")
    settings = {**config, **text} if isinstance(text, dict) else dict(config)
    model_type = settings.get("model_type")
    aliases: Mapping[str, str] = {}
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        aliases = CONFIG_MAPPING[model_type].attribute_map
    found = {name: settings.get(aliases.get(name, name)) for name in LARGEST_SIZES}
    return {
        name: settings.get(name) if value is None else value
        for name, value in found.items()
        if value is not None or settings.get(name) is not None
    }


def _check_layers(claimed: Any, tensors: Mapping[str, TensorInfo]) -> None:
    if not isinstance(claimed, int):
        return
    counts: dict[str, int] = {}
    for name in tensors:
        if found := _LAYER.match(name):
            family = found["family"]
            counts[family] = max(counts.get(family, 0), int(found["index"]) + 1)
    if not counts:
        return
    family = max(counts, key=lambda name: counts[name])
    if claimed > counts[family]:
        raise TensorError(
            f"config.json says num_hidden_layers {claimed}, and the checkpoint lacks"
            f" {family}.{counts[family]}. and what follows: its tensors have {counts[family]}"
            " layers; the two are from different models"
        )


def _check_depth(claimed: Any) -> None:
    if isinstance(claimed, int) and claimed > _MOST_BUILT:
        raise CheckpointError(
            f"config.json says num_hidden_layers {claimed}, and the tensors bear it out; at most"
            f" {_MOST_BUILT} layers are built"
        )


def _width(tensor: TensorInfo) -> int:
    """How long the longest side of a tensor can be once it is unpacked."""
    longest = max(tensor.shape, default=1)
    packing = _LARGEST_PACKING.get(tensor.dtype, 1)
    return min(longest * packing, max(math.prod(tensor.shape) * packing, 1))


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """Give every whole number of a parsed JSON value with the name under which it stands."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif type(value) is int:
        yield name, value
