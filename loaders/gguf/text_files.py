"""Writes the small files that a Transformers checkpoint has, for a GGUF file that has none.

Tokenizer, chat template, config and generation settings go to a folder of the cache, named by
what they were made from, so they are written once and read as any checkpoint's are: by the API's
process too, which never opens the weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from loaders.cache import default_cache_dir
from loaders.checkpoint.own_places import read_model_card
from loaders.errors import CheckpointError
from loaders.gguf.special_tokens import special_token_id
from loaders.gguf.tokenizer import make_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from loaders.gguf.model import GgufModel

# Raised whenever the same header should give other files.
_VERSION = 2
_MODEL_CARD_FILE = "README.md"
_MAX_MODEL_CARD_BYTES = 1_048_576


def write_text_files(model: GgufModel, cache_dir: Path | None = None) -> Path:
    """Return the folder that holds the model's small files, written if it is not there yet.

    Raises CheckpointError where the file's tokenizer cannot be read.
    """
    name = model.files.path.name.removesuffix(".gguf")
    folder = (cache_dir or default_cache_dir()) / "gguf" / f"{name[:80]}-{_digest(model)}"
    if folder.is_dir():
        return folder
    tokenizer = make_tokenizer(model.files.metadata, model.config)
    try:
        _write_aside(folder, model, tokenizer)
    except OSError as error:
        if not folder.is_dir():  # else another process has been quicker
            raise CheckpointError(
                f"the tokenizer's files cannot be written to {folder.parent}: {error}; free space"
                " there, or name another cache folder (TETRAD_CACHE_DIR)"
            ) from error
    return folder


def _write_aside(folder: Path, model: GgufModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write to another folder and rename it, so that nobody sees half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        unfinished.chmod(0o755)  # a temporary folder's is 0700
        _write_into(unfinished, model, tokenizer)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_into(folder: Path, model: GgufModel, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.save_pretrained(folder)
    _write_json(folder / "config.json", model.config)
    _write_json(folder / "generation_config.json", {"eos_token_id": _end_ids(model)})
    if (model_card := _model_card(model)) is not None:
        (folder / _MODEL_CARD_FILE).write_bytes(model_card)


def _model_card(model: GgufModel) -> bytes | None:
    path = model.files.path.with_name(_MODEL_CARD_FILE)
    return read_model_card(path, most=_MAX_MODEL_CARD_BYTES)


def _end_ids(model: GgufModel) -> list[int]:
    """List the ids that end an answer: of the text, and of a turn where that is another."""
    metadata, vocab_size = model.files.metadata, model.config["vocab_size"]
    named = (special_token_id(metadata, name, vocab_size) for name in ("eos", "eot"))
    return sorted({number for number in named if number is not None})


def _digest(model: GgufModel) -> str:
    """Hash all that the files are made from."""
    digest = hashlib.sha256(f"{_VERSION}\n".encode())
    digest.update(_model_card(model) or b"")
    settings = {key: model.files.metadata[key] for key in sorted(model.files.metadata)}
    digest.update(json.dumps([model.config, settings]).encode())
    return digest.hexdigest()[:16]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
