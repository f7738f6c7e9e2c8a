"""Tokenizers of families that infill: of real vocabularies where they are at hand, else trained.

CodeLlama's is the real Llama 2 vocabulary with CodeLlama's pieces behind it, as a tokenizer.model,
so that the sentencepiece library itself can say what its ids must be. Codestral's and CodeGemma's
vocabularies are not at hand: theirs are synthetic, small ones trained here.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.gguf.files import open_files
from loaders.gguf.tokenizer import make_tokenizer
from service.text.facts import VariantFacts
from service.text.infilling.infilling import Infilling, resolve_infilling
from tests.sentencepiece_models import train_sentencepiece, write_sentencepiece

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

VOCABULARIES = Path(__file__).parents[4].parent / "shared" / "data"
# From 32000 on in 7B and 13B: parts of the pieces, the four pieces, repeated ends.
CODELLAMA_PIECES = [
    *("▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT"),
    *("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    *("▁<EOT>" * times for times in range(2, 7)),
]
QWEN_PIECES = {
    151659: "<|fim_prefix|>",
    151660: "<|fim_middle|>",
    151661: "<|fim_suffix|>",
    151662: "<|fim_pad|>",
    151663: "<|repo_name|>",
    151664: "<|file_sep|>",
}
NORMAL = 1


@pytest.fixture(scope="session")
def codellama_model() -> bytes:
    """CodeLlama's tokenizer.model: its pieces are ordinary ones, the last to be joined.

    So typed text becomes them, as the parts of pieces among them tell.
    """
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(vocabulary_file("llama-spm")).fields
    texts, scores, kinds = (
        [field.parts[index] for index in field.data]
        for field in (fields[f"tokenizer.ggml.{n}"] for n in ("tokens", "scores", "token_type"))
    )
    pieces = [
        (bytes(text).decode(), float(score[0]), int(kind[0]))
        for text, score, kind in zip(texts, scores, kinds, strict=True)
    ]
    assert len(pieces) == 32000
    lowest = min(score for _, score, _ in pieces)
    return write_sentencepiece(
        pieces + [(text, lowest - n, NORMAL) for n, text in enumerate(CODELLAMA_PIECES, start=1)]
    )


@pytest.fixture(scope="session")
def codellama_of_model(codellama_model, tmp_path_factory) -> PreTrainedTokenizerBase:
    """CodeLlama's tokenizer as read from its tokenizer.model."""
    return read_model(codellama_model, tmp_path_factory.mktemp("codellama"))


@pytest.fixture(scope="session")
def codellama_of_json(codellama) -> PreTrainedTokenizerBase:
    """CodeLlama's tokenizer as in a tokenizer.json: its four pieces are special."""
    return with_bos(codellama)


@pytest.fixture(scope="session")
def deepseek_coder() -> PreTrainedTokenizerBase:
    """Read by our own reader: Transformers' (5.23) gives its special pieces in byte letters."""
    return read_gguf("deepseek-coder")


@pytest.fixture(scope="session")
def qwen_coder() -> PreTrainedTokenizerBase:
    """Qwen2's vocabulary with the pieces of Qwen2.5-Coder in the places left for them."""
    return read_gguf("qwen2", QWEN_PIECES)


@pytest.fixture(scope="session")
def codestral_model() -> bytes:
    """A synthetic vocabulary with Codestral's pieces."""
    pieces = ["[INST]", "[/INST]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
    return train_sentencepiece(control_symbols=pieces)


@pytest.fixture(scope="session")
def codestral(codestral_model, tmp_path_factory) -> PreTrainedTokenizerBase:
    return read_model(codestral_model, tmp_path_factory.mktemp("codestral"))


@pytest.fixture(scope="session")
def codegemma_model() -> bytes:
    """A synthetic vocabulary with CodeGemma's pieces; no space is put before texts."""
    pieces = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>"]
    return train_sentencepiece(control_symbols=pieces, add_dummy_prefix=False)


@pytest.fixture(scope="session")
def codegemma(codegemma_model, tmp_path_factory) -> PreTrainedTokenizerBase:
    return read_model(codegemma_model, tmp_path_factory.mktemp("codegemma"))


REPOS = {
    "codellama_of_model": "TheBloke/CodeLlama-7B-GPTQ",
    "codellama_of_json": "TheBloke/CodeLlama-13B-Instruct-GPTQ",
    "deepseek_coder": "TheBloke/deepseek-coder-6.7B-base-GPTQ",
    "starcoder": "TheBloke/starcoder2-15b-GPTQ",
    "qwen_coder": "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ",
    "codestral": "owner/Codestral-22B-v0.1-GPTQ",
    "codegemma": "owner/codegemma-2b-GPTQ",
}


@pytest.fixture(scope="session")
def codellama_infilling(codellama_of_json) -> Infilling:
    return made(codellama_of_json, "codellama_of_json")


@pytest.fixture(scope="session")
def codellama_model_infilling(codellama_of_model) -> Infilling:
    return made(codellama_of_model, "codellama_of_model")


@pytest.fixture(scope="session")
def deepseek_infilling(deepseek_coder) -> Infilling:
    return made(deepseek_coder, "deepseek_coder")


@pytest.fixture(scope="session")
def starcoder_infilling(starcoder) -> Infilling:
    return made(starcoder, "starcoder")


@pytest.fixture(scope="session")
def qwen_infilling(qwen_coder) -> Infilling:
    return made(qwen_coder, "qwen_coder")


@pytest.fixture(scope="session")
def codestral_infilling(codestral) -> Infilling:
    return made(codestral, "codestral")


@pytest.fixture(scope="session")
def codegemma_infilling(codegemma) -> Infilling:
    return made(codegemma, "codegemma")


def made(tokenizer: PreTrainedTokenizerBase, name: str) -> Infilling:
    return resolve_infilling(tokenizer, VariantFacts(repo=REPOS[name], model_type="llama"))


def vocabulary_file(name: str) -> Path:
    file = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not file.is_file():
        pytest.skip(f"no {file.name} in the folder beside the checkout")
    return file


def read_gguf(name: str, renamed: Mapping[int, str] = MappingProxyType({})) -> Any:
    metadata = dict(open_files(vocabulary_file(name)).metadata)
    texts = list(metadata["tokenizer.ggml.tokens"])
    for number, piece in renamed.items():
        texts[number] = piece
    metadata["tokenizer.ggml.tokens"] = tuple(texts)
    return make_tokenizer(metadata, {"max_position_embeddings": 1024})


def read_model(content: bytes, folder: Path) -> PreTrainedTokenizerBase:
    (folder / "tokenizer.model").write_bytes(content)
    return load_tokenizer(folder, is_tried=True)


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Have "<s>" added to texts, as Llama's own files do."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
