"""A random model that infills, with Qwen-Coder's special pieces, behind `tetrad serve`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from transformers import AddedToken

from loaders.demo.repository import commit_branch
from tests.models import tiny_qwen2, tiny_tokenizer, write_gptq_checkpoint
from tests.service.real_server import RealServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

REPO = "tetrad/Tiny-Qwen2.5-Coder-GPTQ"
MODEL = f"{REPO}:main"
FIM_PIECES = [
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]
VOCAB_SIZE = 520  # 512 of the tokenizer and these


def coder_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(chat_template=None)
    pieces = [AddedToken(piece, special=True, normalized=False) for piece in FIM_PIECES]
    assert tokenizer.add_tokens(pieces, special_tokens=True) == len(FIM_PIECES)
    return tokenizer


@contextlib.contextmanager
def coder_server(folder: Path, **settings: object) -> Iterator[RealServer]:
    checkpoint = write_gptq_checkpoint(
        folder / "checkpoint", tiny_qwen2(vocab_size=VOCAB_SIZE), tokenizer=coder_tokenizer()
    )
    commit_branch(folder / "cache", REPO, "main", checkpoint)
    with serving(folder / "run", MODEL, cache_dir=str(folder / "cache"), **settings) as server:
        assert server.health()[0]["state"] == "serving", server.log()
        yield server
