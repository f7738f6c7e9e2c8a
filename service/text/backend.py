"""The part of a tokenizer that may be used from several threads at once.

Transformers' own calls change the shared tokenizer while they run (truncation, padding, special
pieces); the backend of the `tokenizers` library only reads itself. Everything here goes through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from loaders.checkpoint.rust_panics import panics_as
from service.text.errors import UnsupportedTokenizerError, broken_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


def fast_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Give the backend of a tokenizer, refusing one that would not encode texts whole."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedTokenizerError(
            f"the tokenizer is a {type(tokenizer).__name__} without a `tokenizers` backend; "
            "give the checkpoint a tokenizer.json"
        )
    if backend.truncation is not None or backend.padding is not None:
        raise UnsupportedTokenizerError(
            "the tokenizer cuts or pads every text (its tokenizer.json says so); "
            "call no_truncation() and no_padding() on its backend once it is loaded"
        )
    return backend


def leading_ids(backend: Tokenizer) -> list[int]:
    """Give the ids that the tokenizer itself puts before a text: BOS, usually; often none.

    Asked of the post-processor by example: many tokenizers have a `bos_token` and add none.
    """
    probe = backend.encode("a")
    first_of_text = probe.special_tokens_mask.index(0)
    return probe.ids[:first_of_text]


def decode_whole(
    backend: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool = False
) -> str:
    """Give the text of token ids, however many. Raises TokenizerFailedError."""
    with panics_as(broken_tokenizer):
        # Of a batch, since `decode` keeps Python's lock (tokenizers 0.23): 0.36 s for 2 million.
        (text,) = backend.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)
    return text


def without_leading(ids: list[int], leading: list[int]) -> list[int]:
    """Drop every repetition of `leading` from the front of `ids`."""
    start = 0
    while leading and ids[start : start + len(leading)] == leading:
        start += len(leading)
    return ids[start:]
