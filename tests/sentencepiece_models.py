"""Trains small SentencePiece models on the project's own text, and writes large ones of pieces."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

if TYPE_CHECKING:
    from collections.abc import Sequence

_TEXT = Path(__file__).parent.parent / "loaders" / "demo" / "evaluation_text.txt"
# Llama's: bytes for what has no piece, text as it is, a space before it.
LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 600,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


def train_sentencepiece(**settings: Any) -> bytes:
    """Return the content of a tokenizer.model; settings: the trainer's, Llama's but for these."""
    content = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.read_text().splitlines()),
        model_writer=content,
        minloglevel=2,
        hard_vocab_limit=False,
        **{**LLAMA, **settings},
    )
    return content.getvalue()


def sentencepiece_ids(content: bytes, text: str) -> list[int]:
    """Return what sentencepiece itself makes of a text."""
    ids: list[int] = SentencePieceProcessor(model_proto=content).encode(text)
    return ids


def write_sentencepiece(pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """Return the content of a tokenizer.model with these pieces (text, score, kind), as Llama's.

    By hand, field by field of sentencepiece_model.proto, as Google's library is not needed here.
    """
    listed = [
        _field(1, _field(1, text.encode()) + _field(2, score) + _field(3, kind))
        for text, score, kind in pieces
    ]
    # BPE, with bytes for what has no piece; no padding piece.
    trainer = _field(3, 2) + _field(35, 1) + _field(43, 2**64 - 1)
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 0) + _field(5, 1)
    return b"".join(listed) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: bytes | float) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
