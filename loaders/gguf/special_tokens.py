"""Which pieces of a GGUF file's vocabulary begin a text, end it, or fill it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

# Vocabularies of SentencePiece that do not name them have Llama's, by llama.cpp's custom.
_LLAMA_PIECES = {"unknown": (0, "<unk>"), "bos": (1, "<s>"), "eos": (2, "</s>")}


def special_token_id(metadata: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    """Give a special piece's id; None where there is none, or none with a row in the model."""
    key = f"tokenizer.ggml.{name}_token_id"
    found = metadata.get(key)
    if type(found) is int and 0 <= found < vocab_size:
        return found
    if found is not None:
        log.warning("special_token_ignored", key=key, found=str(found)[:40], vocabulary=vocab_size)
    return _llama_id(metadata, name, vocab_size)


def _llama_id(metadata: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    if metadata.get("tokenizer.ggml.model") != "llama" or name not in _LLAMA_PIECES:
        return None
    number, piece = _LLAMA_PIECES[name]
    pieces = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(pieces, tuple) or number >= min(len(pieces), vocab_size):
        return None
    return number if pieces[number] == piece else None
