"""What single tokens look like to clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.text.backend import fast_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """The texts and bytes of one tokenizer's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = fast_backend(tokenizer)

    def text(self, token_id: int) -> str:
        return self._backend.decode([token_id], skip_special_tokens=False)

    def raw_bytes(self, token_id: int) -> bytes:
        return self.text(token_id).encode()

    def is_special(self, token_id: int) -> bool:
        added = self._backend.get_added_tokens_decoder().get(token_id)
        return added is not None and added.special


def token_texts(tokenizer: PreTrainedTokenizerBase) -> TokenTexts:
    """Return a tokenizer's."""
    return TokenTexts(tokenizer)
