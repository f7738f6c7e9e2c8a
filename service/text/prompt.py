"""Raw prompts to token ids.

The prompt of a completion belongs to its author: special pieces in it are parsed, as model cards'
own examples expect. Chat contents are another matter; see `templates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.text.backend import fast_backend, leading_ids, without_leading
from service.text.encoding import encode_in_time
from service.text.errors import InvalidPromptError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a raw prompt with exactly one BOS, typed or not; none if the tokenizer adds none.

    Raises InvalidPromptError for text with a lone surrogate, TokenizerFailedError.
    """
    backend = fast_backend(tokenizer)
    leading = leading_ids(backend)
    typed_bos = "".join(backend.id_to_token(token_id) or "" for token_id in leading)
    # By text first: SentencePiece vocabularies begin the text after a typed "<s>" without its space
    # mark, so "<s>Hi" and "Hi" would give different ids although both mean the same prompt.
    ids = encode_text(backend, _without_prefix(text, typed_bos))
    return leading + without_leading(ids, leading)


def encode_text(backend: Tokenizer, text: str, owner: Tokenizer | None = None) -> list[int]:
    """Encode text as it stands, special pieces parsed, nothing added.

    owner: the tokenizer that `backend` is a copy of.
    Raises InvalidPromptError for text with a lone surrogate, TokenizerFailedError.
    """
    require_unicode(text)
    return encode_in_time(backend, text, owner)


def require_unicode(text: str) -> None:
    """Raise InvalidPromptError for text with a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPromptError(
            f"the text has a lone surrogate at position {error.start}; send well-formed Unicode"
        ) from error


def _without_prefix(text: str, prefix: str) -> str:
    """Drop every repetition of `prefix` from the front of `text`, in linear time."""
    start = 0
    while prefix and text.startswith(prefix, start):
        start += len(prefix)
    return text[start:]
