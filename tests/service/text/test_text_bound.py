"""A text is refused unread only where it cannot fit, whatever the tokenizer does with it."""

from __future__ import annotations

import unicodedata

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from service.text.errors import TextTooLongError
from service.text.prompt import encode_prompt
from service.text.text_bound import _NORMALIZERS, TextBound, find_bound
from service.text.token_text import BYTE_LETTERS
from tests.models import tiny_tokenizer
from tests.service.fakes import ByteTokenizer


def byte_level(normalizer: object = None, splitter: object = None) -> Made:
    vocabulary = {letter: number for number, letter in enumerate(BYTE_LETTERS)}
    backend = Tokenizer(models.BPE({**vocabulary, "ab": 256}, [("a", "b")]))
    backend.pre_tokenizer = splitter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    return Made(backend)


class Made:
    """As much of a tokenizer as is asked."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


@pytest.mark.parametrize(
    "text", ["ab" * 200, "é" * 100, "\U0001f600" * 40, " " * 300, "a\u0301" * 90]
)
@pytest.mark.parametrize(
    "normalizer", [None, normalizers.NFC(), normalizers.NFKC(), normalizers.Lowercase()]
)
def test_a_text_has_no_fewer_tokens_than_its_bytes_tell(text, normalizer):
    tokenizer = byte_level(normalizer)
    bound = find_bound(tokenizer)
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert 1 <= bound.least_tokens(text) <= len(ids)
    bound.require_short(text, len(ids))
    with pytest.raises(TextTooLongError, match=r"hold .* at most"):
        bound.require_short(text, bound.least_tokens(text) - 1)


def test_a_token_holds_as_much_as_the_longest_piece():
    assert find_bound(byte_level()) == TextBound(2)
    assert find_bound(byte_level(normalizers.NFC())) == TextBound(8)
    replaced = normalizers.Replace("abc", "x")
    assert find_bound(byte_level(replaced)) == TextBound(6)


@pytest.mark.parametrize(
    ("normalizer", "splitter"),
    [
        (normalizers.Strip(), None),
        (normalizers.Replace("a", ""), None),
        (None, pre_tokenizers.Whitespace()),
        (None, pre_tokenizers.Split(" ", "removed")),
        (normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()]), None),
    ],
)
def test_where_any_amount_may_be_dropped_nothing_is_refused(normalizer, splitter):
    bound = find_bound(byte_level(normalizer, splitter))
    assert bound == TextBound(None)
    bound.require_short("x" * 10_000, 1)
    assert bound.least_tokens("x") == 0


def test_what_a_vocabulary_does_not_know_is_no_measure():
    backend = Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True))
    assert find_bound(Made(backend)) == TextBound(None)


def test_bytes_that_a_vocabulary_leaves_out_do_not_count():
    vocabulary = {
        letter: number for number, letter in enumerate(BYTE_LETTERS) if number not in (4, 0xF1)
    }
    backend = Tokenizer(models.BPE({**vocabulary, "ab": 256}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    bound = find_bound(Made(backend))
    assert bound == TextBound(2, unknown=b"\x04\xf1")
    text = "ab\x04" * 5000
    assert len(backend.encode(text).ids) == bound.least_tokens(text) == 5000
    bound.require_short(text, 5000)
    with pytest.raises(TextTooLongError):
        bound.require_short(text, 4999)
    backend.normalizer = normalizers.NFC()  # of which such bytes may come
    assert find_bound(Made(backend)) == TextBound(None)


def test_space_that_a_special_piece_swallows_does_not_count():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<x>", rstrip=True)])
    bound = find_bound(tokenizer)
    text = "<x>" + " " * 1000
    assert len(tokenizer.backend_tokenizer.encode(text).ids) == 1
    bound.require_short(text, 1)
    with pytest.raises(TextTooLongError):
        bound.require_short("y" * 1000, 1)


@pytest.mark.parametrize(("form", "back"), [("NFC", "NFD"), ("NFKC", "NFKD")])
def test_no_form_of_unicode_shrinks_a_text_more_than_is_reckoned(form, back):
    """Of each character: the longest ones that its parts may have been written with."""
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    parts = {one: unicodedata.normalize(back, one) for one in every}
    longest: dict[str, float] = {}
    for one, of_one in parts.items():
        share = len(one.encode()) / len(of_one)
        for part in of_one:
            longest[part] = max(longest.get(part, 0), share, len(part.encode()))
    kept = (one for one in every if unicodedata.normalize(form, one) == one)
    worst = max(sum(longest[p] for p in parts[one]) / len(one.encode()) for one in kept)
    assert worst <= _NORMALIZERS[form]
    small = max(len(one.encode()) / len(one.lower().encode()) for one in every)
    assert small <= _NORMALIZERS["Lowercase"]


def test_a_prompt_beyond_the_bound_is_not_encoded(monkeypatch):
    tokenizer = ByteTokenizer()
    longest = TextBound.of(tokenizer).token_bytes
    assert longest
    monkeypatch.setattr("service.text.prompt.encode_text", lambda *_, **__: [7])
    assert encode_prompt(tokenizer, "a" * 10 * longest, most_tokens=10)[-1] == 7
    with pytest.raises(TextTooLongError, match=f"{10 * longest + 1} bytes"):
        encode_prompt(tokenizer, "a" * (10 * longest + 1), most_tokens=10)


@pytest.mark.parametrize("parse_special", [True, False])
def test_the_last_tokens_of_a_cut_text_are_those_of_the_whole(monkeypatch, parse_special):
    monkeypatch.setattr("service.text.encoding.MAX_WHOLE", 1000)
    tokenizer = tiny_tokenizer()
    text = "".join(f"def f{n}(x): return x + {n}\n" for n in range(3000))
    whole = encode_prompt(tokenizer, text, parse_special=parse_special)
    cut = encode_prompt(tokenizer, text, parse_special=parse_special, keep_last=50)
    assert len(cut) < len(whole)
    assert cut[-50:] == whole[-50:]
