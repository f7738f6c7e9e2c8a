"""Trains small SentencePiece models, as a maker of models would, on the project's own text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

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
