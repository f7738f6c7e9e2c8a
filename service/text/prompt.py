"""Raw prompts to token ids, and prompts back to text.

The prompt of a completion belongs to its author: special pieces in it are parsed, as model cards'
own examples expect, unless the author says that they are text. Chat contents are another matter;
see `templates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.checkpoint.rust_panics import panics_as
from service.text.backend import fast_backend, leading_ids, without_leading
from service.text.control_pieces import ControlPieces
from service.text.encoding import encode_text
from service.text.errors import broken_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    add_special_tokens: bool = True,
    parse_special: bool = True,
) -> list[int]:
    """Encode a raw prompt with exactly one BOS, typed or not; none if the tokenizer adds none.

    add_special_tokens: False adds nothing, and leaves a typed BOS as it was typed, however often.
    parse_special: False makes plain text of all control pieces that were typed, a BOS among them.
    Raises InvalidPromptError for text with a lone surrogate, TokenizerFailedError.
    """
    backend = fast_backend(tokenizer)
    leading = leading_ids(backend) if add_special_tokens else []
    if not parse_special:
        return leading + ControlPieces.of(tokenizer).encode_typed(text)
    typed_bos = "".join(backend.id_to_token(token_id) or "" for token_id in leading)
    # By text first: SentencePiece vocabularies begin the text after a typed "<s>" without its space
    # mark, so "<s>Hi" and "Hi" would give different ids although both mean the same prompt.
    ids = encode_text(backend, _without_prefix(text, typed_bos))
    return leading + without_leading(ids, leading)


def decode_prompt(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return a prompt's ids as text for people, special pieces shown. Raises TokenizerFailedError.

    Not for the event loop, where there may be many: 0.2 µs an id (2026-11).
    """
    backend = fast_backend(tokenizer)
    with panics_as(broken_tokenizer):
        return backend.decode(list(token_ids), skip_special_tokens=False)


def _without_prefix(text: str, prefix: str) -> str:
    """Drop every repetition of `prefix` from the front of `text`, in linear time."""
    start = 0
    while prefix and text.startswith(prefix, start):
        start += len(prefix)
    return text[start:]
