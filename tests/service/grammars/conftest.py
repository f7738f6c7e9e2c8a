"""What follows grammars in tests: the library itself, within the limits of a server."""

from __future__ import annotations

import gc
import itertools
import string
from typing import TYPE_CHECKING

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from service.grammars.json_schema import schema_grammar
from service.grammars.limits import PARSER_LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def others_objects_set_aside() -> Iterator[None]:
    """What other tests have left is not looked through while a limited time runs."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def followed() -> tuple[Tokenizer, LLTokenizer]:
    """A vocabulary of a byte a token, and of numbers of two and three digits."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.product(string.digits, repeat=2))
    triples = [(a + b, c) for a, b, c in itertools.product(string.digits, repeat=3)]
    merges = [*pairs, *triples]
    names += [left + right for left, right in merges]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return backend, LLTokenizer(backend.to_str(), eos_token=backend.token_to_id("</s>"))


@pytest.fixture(scope="session")
def follows(followed):
    """Whether a text follows a grammar to its end."""
    backend, tokenizer = followed

    def ask(grammar: str, text: str) -> bool:
        matcher = LLMatcher(tokenizer, grammar, limits=PARSER_LIMITS, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        for token_id in backend.encode(text, add_special_tokens=False).ids:
            matcher.compute_bitmask()
            if matcher.is_stopped() or matcher.try_consume_tokens([token_id]) != 1:
                assert not matcher.is_error(), matcher.get_error()
                return False
        assert not matcher.is_error(), matcher.get_error()
        return matcher.is_accepting()

    return ask


@pytest.fixture(scope="session")
def accepts(follows):
    """Whether a text follows a schema to its end."""

    def ask(schema: object, text: str) -> bool:
        return follows(schema_grammar(schema), text)

    return ask
