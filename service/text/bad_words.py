"""Words that never come about, as token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.text.backend import fast_backend
from service.text.encoding import encode_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


def bad_word_ids(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Return each word's ids."""
    backend = fast_backend(tokenizer)
    return tuple(tuple(encode_text(backend, word)) for word in words)
