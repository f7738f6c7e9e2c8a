"""Where the BOS of a prompt came from: for people who wonder whether it is there once."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from service.text.backend import fast_backend, leading_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


class BosOrigin(enum.Enum):
    """Who put BOS before a prompt; the values are what clients see."""

    TOKENIZER = "tokenizer"  # it puts one before every text
    TYPED = "typed"  # the prompt's author
    TEMPLATE = "template"


def bos_origin(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    text: str,
    writer: BosOrigin = BosOrigin.TYPED,
) -> BosOrigin | None:
    """Tell who put BOS at the beginning of a prompt; None where there is none.

    text: that the ids were made of, written by `writer`; empty where what it holds of special
    pieces was taken for plain text.
    """
    backend = fast_backend(tokenizer)
    leading = leading_ids(backend)
    bos = leading or ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])
    if not bos or list(token_ids[: len(bos)]) != bos:
        return None
    pieces = "".join(backend.id_to_token(token_id) or "" for token_id in bos)
    return writer if text.startswith(pieces) else BosOrigin.TOKENIZER
