"""Reads what config.json says in an older spelling, or of a token that has no row.

For what means one thing only, and would keep a good checkpoint from being built. What could mean
two things is refused elsewhere (`loaders.checkpoint.config_limits`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig

log = structlog.get_logger(__name__)

_ROPE_KEYS = ("rope_scaling", "rope_parameters")
_LONG_ROPE = "longrope"
# What Phi-3's first files of April 2024 call LongRoPE; "yarn" stood there beside the same lists.
_OLD_LONG_ROPE = ("su", "yarn")


def repair_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parsed config.json with old spellings replaced, in `text_config` too."""
    repaired = {key: value for key, value in config.items() if not _is_no_pad_id(key, value)}
    for key in _ROPE_KEYS:
        if isinstance(repaired.get(key), dict):
            repaired[key] = _named_as_today(repaired[key])
    if isinstance(repaired.get("text_config"), dict):
        repaired["text_config"] = repair_config(repaired["text_config"])
    return repaired


def _is_no_pad_id(key: str, value: Any) -> bool:
    """Whether it is a padding id of another type, as a list; nothing here is ever padded."""
    is_id = value is None or (isinstance(value, int) and not isinstance(value, bool))
    if key != "pad_token_id" or is_id:
        return False
    log.info("pad_id_ignored", found=str(value)[:80], reason="it is no whole number")
    return True


def _named_as_today(rope: Mapping[str, Any]) -> dict[str, Any]:
    named = rope.get("rope_type", rope.get("type"))
    has_lists = "short_factor" in rope and "long_factor" in rope
    if named not in _OLD_LONG_ROPE or not has_lists:
        return dict(rope)
    return {**rope, **{key: _LONG_ROPE for key in ("type", "rope_type") if key in rope}}


def drop_pad_id_without_row(config: PreTrainedConfig) -> None:
    """Take away a padding id that the embedding has no row for.

    A `[PAD]` that was added to the tokenizer alone is the first id beyond the vocabulary, and some
    write −1. Transformers would ask the embedding for that row, which nothing ever looks up.
    """
    text: Any = config.get_text_config(decoder=True)
    for part in {id(config): config, id(text): text}.values():
        pad = getattr(part, "pad_token_id", None)
        if isinstance(pad, int) and not 0 <= pad < text.vocab_size:
            log.info("pad_id_ignored", found=pad, vocab_size=text.vocab_size)
            # Past the checks of the few classes that know no model without one.
            object.__setattr__(part, "pad_token_id", None)
