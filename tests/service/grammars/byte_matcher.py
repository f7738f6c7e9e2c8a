"""Whether a grammar allows a text, as the library follows it over a vocabulary of bytes."""

from __future__ import annotations

from functools import cache

from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from service.grammars.limits import PARSER_LIMITS

END = "<end>"


@cache
def byte_tokens() -> LLTokenizer:
    """A vocabulary of all bytes, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {one: number for number, one in enumerate(alphabet)} | {END: len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return LLTokenizer(tokenizer.to_str(), eos_token=len(alphabet), slices=[])


def matches(grammar: str, text: str) -> bool:
    """Whether a text is whole; the grammar must be one that can be read."""
    matcher = LLMatcher(byte_tokens(), grammar, limits=PARSER_LIMITS, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    taken = byte_tokens().tokenize_str(text)
    return matcher.try_consume_tokens(taken) == len(taken) and matcher.is_accepting()
