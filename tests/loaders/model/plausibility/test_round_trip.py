"""Tokenizers that lose text, and those that are made to."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from loaders.gguf.files import open_files
from loaders.gguf.tokenizer import make_tokenizer
from loaders.model.plausibility.round_trip import CODE, check_round_trip
from tests.models import tiny_tokenizer

VOCABULARIES = Path(__file__).parents[5] / "shared" / "data"


def byte_level(*, normalizer=None, pre_tokenizer=None, decoder=None):
    made = tiny_tokenizer()
    backend = made.backend_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        backend.decoder = decoder
    return made


def sentencepiece(*, spaces=True):
    """A tokenizer in Llama's manner: spaces as ▁, one before the text, unknown ones in bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " ")] if spaces else []
    backend.decoder = decoders.Sequence(
        [*steps, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def word_level():
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator([CODE], trainers.WordLevelTrainer(special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(tiny_tokenizer(), id="byte level"),
        pytest.param(
            byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
            id="with a space before the text",
        ),
        pytest.param(byte_level(normalizer=normalizers.NFC()), id="normalised to NFC"),
        pytest.param(sentencepiece(), id="sentencepiece"),
    ],
)
def test_tokenizers_that_give_all_text_back_are_not_suspect(tokenizer):
    assert check_round_trip(tokenizer) == []


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(byte_level(normalizer=normalizers.Lowercase()), id="lower case"),
        pytest.param(byte_level(normalizer=normalizers.Strip()), id="ends stripped"),
        pytest.param(
            byte_level(normalizer=normalizers.Replace(Regex(r"\s+"), " ")), id="spaces folded"
        ),
        pytest.param(
            byte_level(
                pre_tokenizer=pre_tokenizers.Sequence(
                    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
                )
            ),
            id="spaces cut away",
        ),
        pytest.param(word_level(), id="whole words"),
    ],
)
def test_tokenizers_that_are_made_to_lose_something_are_not_suspect(tokenizer):
    assert check_round_trip(tokenizer) == []


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(byte_level(decoder=decoders.WordPiece()), id="another decoder"),
        pytest.param(byte_level(decoder=decoders.Metaspace()), id="sentencepiece's decoder"),
        pytest.param(byte_level(pre_tokenizer=pre_tokenizers.Metaspace()), id="another spelling"),
        pytest.param(sentencepiece(spaces=False), id="marks left in"),
    ],
)
def test_tokenizers_that_lose_what_they_should_keep_are_suspect(tokenizer):
    (suspicion,) = check_round_trip(tokenizer)
    assert suspicion.check == "tokenizer_round_trip"
    assert "gives" in suspicion.reason


@pytest.mark.parametrize("name", ["llama-spm", "qwen2", "starcoder", "deepseek-coder"])
def test_real_vocabularies_are_not_suspect(name):
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"needs the vocabulary {path.name}, which is not beside the checkout")
    config = {"max_position_embeddings": 2048}
    assert check_round_trip(make_tokenizer(dict(open_files(path).metadata), config)) == []
