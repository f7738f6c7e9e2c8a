"""Finds layers that a checkpoint's files hold and its config.json does not count.

Transformers builds as many as `num_hidden_layers` says and leaves the others unread. Layers that
predict further tokens ahead lie there by design, and a key of config.json says so; of all others it
is likelier that config.json belongs to a smaller model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# A decoder's own layers; those of a vision or audio tower are counted elsewhere.
_LAYER = re.compile(
    r"(?:(?:model|transformer|gpt_neox|language_model|backbone|decoder)\.)*"
    r"(?:layers|h|blocks)\.(\d{1,5})\."
)
# Keys that count layers for multi-token prediction, which follow the others.
PREDICTOR_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")


@dataclass(frozen=True, slots=True)
class UnusedLayers:
    """Layers beyond those that a model has."""

    names: frozenset[str]  # of their tensors
    numbers: tuple[int, ...]  # of the layers, rising
    unexplained: tuple[int, ...]  # those that no key of config.json accounts for


def find_unused_layers(
    names: Iterable[str], config: Mapping[str, Any], num_layers: int | None
) -> UnusedLayers:
    """Find the tensors of layers `num_layers` and above; none where that is None."""
    if num_layers is None:
        return UnusedLayers(frozenset(), (), ())
    beyond = {
        name: int(match[1])
        for name in names
        if (match := _LAYER.match(name)) is not None and int(match[1]) >= num_layers
    }
    numbers = tuple(sorted(set(beyond.values())))
    explained = num_layers + num_predictors(config)
    return UnusedLayers(frozenset(beyond), numbers, tuple(n for n in numbers if n >= explained))


def num_predictors(config: Mapping[str, Any]) -> int:
    """Count the layers for multi-token prediction that config.json speaks of."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = [place.get(key) for place in places for key in PREDICTOR_KEYS]
    return max((n for n in found if isinstance(n, int) and not isinstance(n, bool)), default=0)
