"""Raw prompts to token ids, and prompts back to text.

The prompt of a completion belongs to its author: special pieces in it are parsed, as model cards'
own examples expect, unless the author says that they are text. Chat contents are another matter;
see `templates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.text.backend import fast_backend, leading_ids, without_leading
from service.text.control_pieces import ControlPieces
from service.text.encoding import encode_text, last_ids, require_unicode
from service.text.text_bound import TextBound

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    add_special_tokens: bool = True,
    parse_special: bool = True,
    most_tokens: int | None = None,
    keep_last: int | None = None,
) -> list[int]:
    """Encode a raw prompt with exactly one BOS, typed or not; none if the tokenizer adds none.

    add_special_tokens: False adds nothing, and leaves a typed BOS as it was typed, however often.
    parse_special: False makes plain text of all control pieces that were typed, a BOS among them.
    most_tokens: of a longer text TextTooLongError is raised, before it is encoded where it can be
    known. keep_last: so many of its last tokens are wanted alone, and it need not be read whole.
    Raises InvalidPromptError for text with a lone surrogate, TokenizerFailedError.
    """
    backend = fast_backend(tokenizer)
    leading = leading_ids(backend) if add_special_tokens else []
    if parse_special:
        typed_bos = "".join(backend.id_to_token(token_id) or "" for token_id in leading)
        # By text first: SentencePiece vocabularies begin the text after a typed "<s>" without its
        # space mark, so "<s>Hi" and "Hi" would give different ids although both mean the same.
        text = _without_prefix(text, typed_bos)
    most = most_tokens if keep_last is None else None
    if most is not None:
        TextBound.of(tokenizer).require_short(text, most)

    def encode(part: str) -> list[int]:
        if parse_special:
            return encode_text(backend, part, most_tokens=most)
        return ControlPieces.of(tokenizer).encode_typed(part, most)

    if keep_last is None:
        ids = encode(text)
    else:
        require_unicode(text)
        ids, _ = last_ids(encode, text, keep_last)
    return leading + (without_leading(ids, leading) if parse_special else ids)


def _without_prefix(text: str, prefix: str) -> str:
    """Drop every repetition of `prefix` from the front of `text`, in linear time."""
    start = 0
    while prefix and text.startswith(prefix, start):
        start += len(prefix)
    return text[start:]
