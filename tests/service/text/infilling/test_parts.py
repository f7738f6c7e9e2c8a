"""Parts of prompts encoded with and without a space mark, in vocabularies that make it hard."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from service.text.errors import InfillingNotSupportedError, TokenizerFailedError
from service.text.infilling.parts import PartEncoder


def marking(*pieces: str, merges=()) -> Tokenizer:
    """A vocabulary of single characters and a few pieces, which puts a mark before every text."""
    letters = [*"▁ab", *pieces]
    vocab = {piece: number for number, piece in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return backend


def shown(backend: Tokenizer, ids: list[int]) -> list[str]:
    return [backend.id_to_token(number) for number in ids]


def test_only_a_beginning_gets_the_mark():
    backend = marking("☺", "▁a", merges=[("▁", "a")])
    encoder = PartEncoder(backend, ())
    assert shown(backend, encoder.begin("a")) == ["▁a"]
    assert shown(backend, encoder.go_on("a")) == ["a"]
    assert shown(backend, encoder.go_on(" a")) == ["▁a"]
    assert encoder.begin("") == encoder.go_on("") == []


def test_a_character_that_pieces_join_with_others_is_not_used_as_guard():
    """Behind "☺", "a" would become a part of "☺a", and another id would be dropped."""
    backend = marking("☺", "☺a", "☻", "▁☻", merges=[("☺", "a"), ("▁", "☻")])
    encoder = PartEncoder(backend, ())
    assert shown(backend, encoder.go_on("a")) == ["a"]
    assert shown(backend, encoder.go_on("☻a")) == ["☻", "a"]


def test_a_character_that_the_vocabulary_does_not_know_is_not_used_as_guard():
    backend = marking("☹")
    assert shown(backend, PartEncoder(backend, ()).go_on("ab")) == ["a", "b"]


def test_bytes_are_as_good_a_guard_as_a_piece():
    pieces = [f"<0x{byte:02X}>" for byte in "☺".encode()]
    vocab = {piece: number for number, piece in enumerate([*"▁ab", *pieces])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.normalizer = normalizers.Prepend("▁")
    assert shown(backend, PartEncoder(backend, ()).go_on("☺a")) == [*pieces, "a"]


def test_a_vocabulary_that_leaves_no_guard_is_refused():
    backend = marking("☺", "☺a", "☻", "☻a", "☹", "☹a")
    with pytest.raises(InfillingNotSupportedError, match=r"join each of ☺, ☻, ☹"):
        PartEncoder(backend, ())


def test_a_space_before_texts_that_is_no_mark_is_refused():
    vocab = {letter: number for number, letter in enumerate(["Ġ", "a"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(InfillingNotSupportedError, match="begins texts with 'Ġ', expected '▁'"):
        PartEncoder(backend, ())


def test_a_text_that_changes_the_guard_is_refused_and_not_cut_in_the_wrong_place():
    backend = marking("☺")
    encoder = PartEncoder(backend, ())
    parts = json.loads(backend.to_str())
    parts["normalizer"] = {"type": "Replace", "pattern": {"String": "☺b"}, "content": "b"}
    encoder._pieces._guarded = Tokenizer.from_str(json.dumps(parts))
    with pytest.raises(TokenizerFailedError, match="joins '☺' with this text"):
        encoder.go_on("b")


def test_a_familys_pieces_are_text_also_where_the_vocabulary_joins_them():
    backend = marking("☺", "<", ">", "P", "▁<", "▁<P", "▁<P>", merges=_steps("▁<P>"))
    assert shown(backend, backend.encode("<P>").ids) == ["▁<P>"]
    encoder = PartEncoder(backend, ["▁<P>"])
    assert shown(backend, encoder.begin("<P>")) == ["▁<P", ">"]
    assert shown(backend, encoder.go_on(" <P>")) == ["▁<P", ">"]


def _steps(piece: str) -> list[tuple[str, str]]:
    return [(piece[:end], piece[end]) for end in range(1, len(piece))]
