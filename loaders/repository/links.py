"""Holds a checkpoint's files against where they may lie, before anything opens them.

Links lead out of a folder where a cache or a clone keeps its contents elsewhere: into its own
store. In a plain folder weights may be linked from another disk. Any other way out could make a
stranger's checkpoint show what lies on this machine. And what is no regular file would be waited
for, or read, without end, also by libraries that open files by themselves.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import structlog

from loaders.checkpoint.files import MAX_JSON_BYTES, MAX_SETTINGS_BYTES
from loaders.checkpoint.own_places import OwnPlaces
from loaders.checkpoint.regular_files import check_regular
from loaders.errors import CheckpointError, UnsafeCheckpointError
from loaders.gguf.parts import is_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger(__name__)

# What we, Transformers or its tokenizers may open of a folder. Other names are nobody's concern.
_OPENED = (
    "config.json", "generation_config.json", "quantize_config.json", "quant_config.json",
    "hf_quant_config.json", "adapter_config.json", "*.safetensors.index.json",
    "*tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
    "chat_template.jinja", "*.safetensors",
)  # fmt: skip
_TOKENIZERS = (  # by the classes of Transformers
    "vocab*.json", "merges.txt", "vocab.txt", "tokenizer.model*", "tekken.json", "tiktoken.model",
    "spm.model", "spm_char.model", "spiece.model", "sentencepiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "target_vocab.json", "bpe.codes",
    "vocab.bpe", "byte_maps.json", "dict.txt", "emoji.json", "entity_vocab.json",
    "normalizer.json", "prophetnet.tokenizer", "word_pronunciation.json", "word_shape.json",
    "*.tiktoken",
)  # fmt: skip
# Any is taken for the tokenizer where none of these is there.
_ANY_MODEL = "*.model"
_BEFORE_ANY_MODEL = ("tokenizer.json", "tokenizer.model")
_TEMPLATES = "additional_chat_templates"  # a folder in which Transformers looks, too
# What Transformers parses whole; those that hold a vocabulary may be large.
_SETTINGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "*.jinja",
)  # fmt: skip
_VOCABULARIES = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "*.model", "*.tiktoken",
)  # fmt: skip


def check_files(folder: Path, *, file: str | None = None, store: Path | None = None) -> None:
    """Look at every file of a folder that may be opened.

    A model card is not looked at here: one that lies elsewhere is not read, and harms nobody.

    file: of a GGUF variant, of which nothing else is read. store: a clone's large files, where the
    folder was written out of one. Raises UnsafeCheckpointError for links
    that lead elsewhere, CheckpointError for what is no regular file, or larger than any such file.
    """
    places = _Places(folder, store)
    for path in _opened_files(folder, file):
        places.check(path)
        if path.exists():
            check_regular(path)
            _check_size(path)


def check_link(folder: Path, path: str, *, store: Path | None = None) -> None:
    """Raise UnsafeCheckpointError for one file of a folder that lies where it may not."""
    _Places(folder, store).check(folder / path)


class _Places:
    """Where the files of one folder may lie, as a rule that is told."""

    def __init__(self, folder: Path, store: Path | None) -> None:
        self._own = OwnPlaces(folder, store)

    def check(self, path: Path) -> None:
        if self._own.hold(path):
            return
        stores = self._own.stores
        if not stores and is_weights(path.name):
            return
        rule = (
            f"only files of {' and '.join(map(str, stores))} may be linked to"
            if stores
            else "only weight files may be linked out of it; copy the file there"
        )
        raise UnsafeCheckpointError(
            f"{path} is a link to {os.path.realpath(path)} and leads out of its folder: {rule}"
        )


def is_weights(name: str) -> bool:
    """Whether a file's name is one of weights."""
    return name.endswith(".safetensors") or is_gguf(name)


def _opened_files(folder: Path, file: str | None) -> Iterator[Path]:
    if file is not None:
        beside = sorted((folder / file).parent.iterdir())
        yield from (path for path in beside if is_gguf(path.name))
        return
    opened = _opened_names(folder)
    for path in sorted(folder.iterdir()):
        if is_gguf(path.name) or _is_any(path.name, opened):
            yield path
        elif path.is_symlink():
            log.debug("link_ignored", path=str(path), reason="nothing opens a file of this name")
    templates = folder / _TEMPLATES
    if os.path.lexists(templates):
        yield from [templates] if templates.is_symlink() else templates.glob("*.jinja")


def is_opened(folder: Path, name: str) -> bool:
    """Whether a settings file of this name may be opened, so that `check_files` looks at it."""
    return _is_any(name, _opened_names(folder))


def _opened_names(folder: Path) -> tuple[str, ...]:
    has_tokenizer = any((folder / name).exists() for name in _BEFORE_ANY_MODEL)
    return (*_OPENED, *_TOKENIZERS, *(() if has_tokenizer else (_ANY_MODEL,)))


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_size(path: Path) -> None:
    if _is_any(path.name, _SETTINGS):
        most = MAX_SETTINGS_BYTES
    elif _is_any(path.name, _VOCABULARIES):
        most = MAX_JSON_BYTES
    else:
        return
    if (found := path.stat().st_size) > most:
        raise CheckpointError(
            f"{path.name} has {found} bytes, at most {most} were expected: it is no such file"
        )
