"""Who put BOS before a prompt."""

from __future__ import annotations

import pytest

from service.text.bos import BosOrigin, bos_origin
from service.text.prompt import encode_prompt


@pytest.mark.parametrize("fixture", ["small", "llama_2"])
def test_bos_is_the_tokenizers_unless_it_was_typed(request, fixture):
    tokenizer = request.getfixturevalue(fixture)
    bos = tokenizer.bos_token
    for text, origin in (("Hi", BosOrigin.TOKENIZER), (f"{bos}Hi", BosOrigin.TYPED)):
        ids = encode_prompt(tokenizer, text)
        assert bos_origin(tokenizer, ids, text) is origin


def test_there_is_none_where_nobody_put_one(small, small_without_bos):
    assert bos_origin(small, encode_prompt(small, "Hi", add_special_tokens=False), "Hi") is None
    assert bos_origin(small_without_bos, encode_prompt(small_without_bos, "Hi"), "Hi") is None
    assert bos_origin(small, [], "") is None


def test_typed_bos_counts_also_where_the_tokenizer_adds_none(small_without_bos):
    text = f"{small_without_bos.bos_token}Hi"
    ids = encode_prompt(small_without_bos, text)
    assert bos_origin(small_without_bos, ids, text) is BosOrigin.TYPED


def test_templates_may_write_it(small):
    text = f"{small.bos_token}user: Hi"
    ids = encode_prompt(small, text)
    assert bos_origin(small, ids, text, BosOrigin.TEMPLATE) is BosOrigin.TEMPLATE
    assert bos_origin(small, ids, "user: Hi", BosOrigin.TEMPLATE) is BosOrigin.TOKENIZER
