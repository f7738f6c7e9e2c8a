"""Reading tokenizer.model, against what the sentencepiece library reads of the same file."""

import pytest
from sentencepiece import SentencePieceProcessor

from loaders.checkpoint.sentencepiece_file import Algorithm, PieceKind, read_sentencepiece_file
from loaders.errors import CheckpointError
from tests.sentencepiece_models import train_sentencepiece


def read(folder, content):
    (folder / "tokenizer.model").write_bytes(content)
    return read_sentencepiece_file(folder / "tokenizer.model")


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_pieces_scores_and_kinds_are_those_that_sentencepiece_reads(tmp_path, algorithm):
    content = train_sentencepiece(model_type=algorithm, user_defined_symbols=["<b>"])
    file, expected = read(tmp_path, content), SentencePieceProcessor(model_proto=content)
    kinds = {
        PieceKind.CONTROL: expected.is_control,
        PieceKind.UNKNOWN: expected.is_unknown,
        PieceKind.BYTE: expected.is_byte,
    }
    assert len(file.pieces) == expected.get_piece_size()
    for number, piece in enumerate(file.pieces):
        assert (piece.text, piece.score) == (
            expected.id_to_piece(number),
            expected.get_score(number),
        )
        assert {kind: check(number) for kind, check in kinds.items()} == {
            kind: piece.kind == kind for kind in kinds
        }
    assert file.algorithm == Algorithm[algorithm.upper()]
    assert [p.text for p in file.pieces if p.kind == PieceKind.USER_DEFINED] == ["<b>"]


@pytest.mark.parametrize("flag", [False, True])
def test_how_text_is_prepared_is_read(tmp_path, flag):
    content = train_sentencepiece(
        add_dummy_prefix=flag, remove_extra_whitespaces=flag, byte_fallback=flag
    )
    file = read(tmp_path, content)
    assert (file.adds_prefix, file.trims_spaces, file.falls_back_to_bytes) == (flag,) * 3
    assert not file.charsmap
    assert read(tmp_path, train_sentencepiece(normalization_rule_name="nmt_nfkc")).charsmap


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no pieces"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"IQ== 0\nIg== 1\nIw== 2\n", "a tiktoken file"),
        (b"<!DOCTYPE html><html>Not found</html>", "no SentencePiece model"),
        (b"\xff" * 100, "no SentencePiece model"),
        (b"\x0a\xff\xff\xff\xff\x0f", "no SentencePiece model"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "no SentencePiece model"),
        (b"PK\x03\x04", "no SentencePiece model"),
    ],
)
def test_what_is_another_kind_of_file_is_refused_in_one_sentence(tmp_path, content, reason):
    with pytest.raises(CheckpointError, match=reason) as refused:
        read(tmp_path, content)
    assert "\n" not in str(refused.value)


def test_a_file_that_ends_early_is_refused(tmp_path):
    content = train_sentencepiece()
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        read(tmp_path, content[: len(content) // 2])
