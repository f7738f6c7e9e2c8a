"""Whether text survives the tokenizer: encoded and decoded, indented code is what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers.pre_tokenizers import ByteLevel

from loaders.reports.suspicion import Suspicion

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

CODE = (
    "def total(items):\n    if not items:\n        return 0\n"
    "\tresult  =  sum(x * 2 for x in items)   # three spaces\n\n\n    return result\n"
)
_SHOWN = 24  # characters around the first difference


def check_round_trip(tokenizer: PreTrainedTokenizerBase) -> list[Suspicion]:
    """Compare what comes back with what went in, where a tokenizer is made to give all of it back.

    Not all are: some fold capitals or runs of spaces away, and say so in their files.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not (_knows_every_byte(backend) and _keeps_everything(backend)):
        return []
    token_ids = tokenizer(CODE, add_special_tokens=False)["input_ids"]
    found = str(
        tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
    # One space before the text is the way of some.
    if found == CODE or found == f" {CODE}" or f" {found}" == CODE:
        return []
    at = _first_difference(found.removeprefix(" "), CODE)
    return [
        Suspicion(
            "tokenizer_round_trip",
            f"the tokenizer gives {found.removeprefix(' ')[at : at + _SHOWN]!r} back for"
            f" {CODE[at : at + _SHOWN]!r}; it should give every text back unchanged",
        )
    ]


def _knows_every_byte(backend: Tokenizer) -> bool:
    """Whether the text's bytes all have pieces of their own, as GPT-2 or Llama spell them."""
    words = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(CODE)
    letters = {letter for word, _ in words for letter in word}
    return all(backend.token_to_id(letter) is not None for letter in letters) or all(
        backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in CODE.encode()
    )


def _keeps_everything(backend: Tokenizer) -> bool:
    """Whether neither normalizer nor pre-tokenizer takes anything away, as they say themselves."""
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    text = CODE
    if normalizer is not None:
        text = normalizer.normalize_str(CODE)
        if text.replace("▁", " ").removeprefix(" ") != CODE:
            return False
    if pre_tokenizer is None:
        return True
    end = 0
    for _, (first, last) in pre_tokenizer.pre_tokenize_str(text):
        if first > end:
            return False
        end = max(end, last)
    return end >= len(text)


def _first_difference(found: str, expected: str) -> int:
    for place, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return place
    return min(len(found), len(expected))
