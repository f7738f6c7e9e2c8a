"""Reads a checkpoint's tokenizer; needs no weights, and nothing that computes with them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

from loaders.checkpoint.rust_panics import panics_as
from loaders.checkpoint.sentencepiece_tokenizer import MODEL_FILE, load_sentencepiece_tokenizer
from loaders.checkpoint.tokenizer_trial import try_tokenizer
from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_OWN_FILE = "tokenizer.json"
# What Transformers can make a fast tokenizer of; some carry versions in their names.
_READ_BY_TRANSFORMERS = re.compile(r"vocab.*\.(json|txt)|tokenizer\..+\.json")
_OTHER_KINDS = re.compile(r"tekken\.json|.*\.tiktoken|tiktoken\.model|.+\.model(\.v\d+)?")


def load_tokenizer(folder: Path, *, is_tried: bool = False) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a checkpoint; raises CheckpointError where it has none.

    is_tried: another process has read it, and it broke on nothing.

    tokenizer.json is taken as it is written. AutoTokenizer would put it into the class that
    tokenizer_config.json names, and Llama's drops the normaliser: CodeLlama 70B's prompts came out
    as other ids (Transformers 5.23).
    """
    _require_files(folder)
    if not is_tried:
        try_tokenizer(folder)
    try:
        with panics_as(RuntimeError):
            tokenizer = _read(folder)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises just that for files that it cannot read
        raise CheckpointError(f"{folder} has no readable tokenizer: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or len(tokenizer) == 0:
        raise CheckpointError(f"{folder} has no fast tokenizer (tokenizer.json or tokenizer.model)")
    # Some repositories were saved from a training run that cut and padded its texts.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def import_for(folder: Path) -> None:
    """Import what reading this folder's tokenizer takes, beyond what is imported here."""
    if _is_sentencepiece(folder):
        import sentencepiece  # noqa: F401
    elif not (folder / _OWN_FILE).exists():
        _auto_tokenizer()


def _read(folder: Path) -> Any:
    """Have the library that its files are for read it."""
    if _is_sentencepiece(folder):
        return load_sentencepiece_tokenizer(folder)
    has_own_file = (folder / _OWN_FILE).exists()
    loader = PreTrainedTokenizerFast if has_own_file else _auto_tokenizer()
    return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _is_sentencepiece(folder: Path) -> bool:
    return not (folder / _OWN_FILE).exists() and (folder / MODEL_FILE).exists()


def _require_files(folder: Path) -> None:
    """Refuse by names alone what has no vocabulary, or only one for a library not used here."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names & {_OWN_FILE, MODEL_FILE} or any(map(_READ_BY_TRANSFORMERS.fullmatch, names)):
        return
    wanted = f"add the {_OWN_FILE} of the model, or its {MODEL_FILE} of SentencePiece"
    other = next((name for name in sorted(names) if _OTHER_KINDS.fullmatch(name)), None)
    if other is not None:
        raise CheckpointError(
            f"{folder} has its tokenizer as {other}, which is not read here; {wanted}"
        )
    raise CheckpointError(f"{folder} has no tokenizer; {wanted}")


def _auto_tokenizer() -> Any:
    from transformers import AutoTokenizer  # imports PyTorch, which serves no other end here

    return AutoTokenizer
