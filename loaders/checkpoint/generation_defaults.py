"""Reads what a checkpoint recommends for generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from loaders.checkpoint.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedConfig

log = structlog.get_logger(__name__)

_MAX_SHOWN = 40  # ids that one line of the log names


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the checkpoint recommends for generation; None where it says nothing."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop_token_ids: frozenset[int]


def read_generation_defaults(folder: Path, config: PreTrainedConfig) -> GenerationDefaults:
    """Read generation_config.json, and config.json's end ids where it is silent.

    What no request could ask for (a temperature of NaN, an end id outside the vocabulary) is left
    out and logged.
    """
    path = folder / "generation_config.json"
    settings = read_json(path) if path.exists() else {}
    # do_sample: false in a generation config means greedy; its absence leaves the choice open.
    greedy = settings.get("do_sample") is False and "temperature" not in settings
    return GenerationDefaults(
        temperature=0.0 if greedy else _number_within(settings, "temperature", 0.0, 2.0),
        top_k=_positive_int(settings.get("top_k")),
        top_p=_number_within(settings, "top_p", 1e-6, 1.0),
        stop_token_ids=_end_ids(settings, config),
    )


def _end_ids(settings: Mapping[str, Any], config: PreTrainedConfig) -> frozenset[int]:
    named = settings.get("eos_token_id")
    if named is None:
        named = getattr(config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [] if named is None else [named]
    vocab_size = int(config.get_text_config(decoder=True).vocab_size)
    kept = [i for i in ids if type(i) is int and 0 <= i < vocab_size]
    if len(kept) < len(ids):
        shown, kept_shown = ids[:_MAX_SHOWN], kept[:_MAX_SHOWN]
        log.warning("end_ids_ignored", found=shown, kept=kept_shown, vocab_size=vocab_size)
    return frozenset(kept)


def _number_within(
    settings: Mapping[str, Any], name: str, least: float, most: float
) -> float | None:
    value = settings.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and least <= value <= most:
        return float(value)
    log.warning("generation_default_ignored", name=name, found=value, least=least, most=most)
    return None


def _positive_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
