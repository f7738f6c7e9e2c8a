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

from loaders.checkpoint.files import MAX_JSON_BYTES, MAX_SETTINGS_BYTES
from loaders.checkpoint.own_places import OwnPlaces
from loaders.checkpoint.regular_files import check_regular
from loaders.errors import CheckpointError, UnsafeCheckpointError
from loaders.gguf.parts import is_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MODEL_CARD = "README.md"
# What we, Transformers or its tokenizers may open of a folder.
_OPENED = (
    "*.json", "*.jinja", "*.model", "*.tiktoken", "*.bpe", "merges.txt", "vocab.txt", _MODEL_CARD,
    "*.safetensors",
)  # fmt: skip
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

    file: of a GGUF variant, of which nothing else is read but its model card. store: a clone's
    large files, where the folder was written out of one. Raises UnsafeCheckpointError for links
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
        yield from (path for path in beside if is_gguf(path.name) or path.name == _MODEL_CARD)
        return
    for path in sorted(folder.iterdir()):
        if is_gguf(path.name) or _is_any(path.name, _OPENED):
            yield path
    templates = folder / _TEMPLATES
    if os.path.lexists(templates):
        yield from [templates] if templates.is_symlink() else templates.glob("*.jinja")


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
