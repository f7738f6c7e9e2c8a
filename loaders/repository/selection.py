"""Which files of a repository a variant needs, by their names alone.

The weights are the safetensors files that `loaders.checkpoint.weight_files` chooses, or one GGUF
file with all its parts; with them go the small files that describe them. Names come from a hub, so
none is trusted: one that could reach outside the cache makes the repository unusable.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from loaders.checkpoint.weight_files import PICKLE_SUFFIXES, choose_weight_files
from loaders.errors import (
    CheckpointError,
    LoadError,
    RevisionNotFoundError,
    UnsafeCheckpointError,
)
from loaders.gguf.parts import group_parts
from loaders.repository.protocol import checked_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from loaders.checkpoint.weight_files import ReadJson
    from loaders.gguf.parts import GgufParts
    from loaders.repository.spec import VariantSpec

# In the repository's top folder; below it, tokenizers read nothing but templates that have names.
_NAMED_TEMPLATES = re.compile(r"additional_chat_templates/[^/]+\.jinja")
_SMALL_FILES = (
    "*.json", "*.jinja", "tokenizer.model", "spiece.model", "*.tiktoken", "merges.txt",
    "vocab.txt", "README.md", "LICENSE*",
)  # fmt: skip
_MAX_NAMES = 40  # that an error message lists


@dataclass(frozen=True, slots=True)
class Selection:
    """The files that one variant needs."""

    small: tuple[str, ...]  # settings, tokenizer, model card, licence
    weights: tuple[str, ...]
    file: str | None  # of a GGUF variant: its file, the first where it is split

    @property
    def paths(self) -> tuple[str, ...]:
        """Name all files, the small ones first: what is wrong shows before much is fetched."""
        return self.small + self.weights


def select_files(paths: Collection[str], spec: VariantSpec, read: ReadJson) -> Selection:
    """Choose what a variant needs of a repository's files.

    read: gives a small file that says which files hold the weights. Raises UnsafeCheckpointError
    for pickles and for names that reach outside a folder, CheckpointError where the choice is not
    clear or files are missing.
    """
    for path in paths:
        checked_path(path)
    small = tuple(sorted(path for path in paths if is_small(path)))
    if spec.file is None and any("/" not in p and p.endswith(".safetensors") for p in paths):
        names = [path for path in paths if "/" not in path]
        weights = choose_weight_files(names, read, where=str(spec)).shards
        return Selection(small=small, weights=weights, file=None)
    variants = group_parts(paths)
    if spec.file is None and not variants:
        raise _without_weights(paths, spec)
    chosen = _choose_gguf(variants, spec)
    chosen.check_complete()
    return Selection(small=small, weights=chosen.paths, file=chosen.first)


def find_quantisation(paths: Iterable[str], wanted: str) -> str | None:
    """Return the GGUF file whose name says a quantisation (`Q4_K_M`); None where none does.

    Raises RevisionNotFoundError where several do.
    """
    found = [parts for parts in group_parts(paths) if parts.type_in_name == wanted.upper()]
    if len(found) > 1:
        raise RevisionNotFoundError(
            f"{wanted!r} may be any of {_listed(parts.name for parts in found)}; name the file"
            " itself, as in owner/name/file.gguf or folder/file.gguf"
        )
    return found[0].first if found else None


def has_gguf(paths: Iterable[str], file: str) -> bool:
    """Tell whether a GGUF file is among paths, named whole or by any of its parts."""
    return _find_gguf(group_parts(paths), file) is not None


def find_local(paths: Collection[str], spec: VariantSpec, read: ReadJson) -> Selection | None:
    """Say which of a local repository's files a variant reads, as far as names tell.

    None where its weights are not among them, or which ones they are is not clear. Unlike in
    `select_files` nothing is refused: what lies on this machine is taken as it is.
    """
    top = [path for path in paths if "/" not in path]
    weights = [path for path in top if path.endswith(".safetensors")]
    if spec.file is None and weights:
        small = tuple(path for path in paths if is_small(path))
        with suppress(LoadError):  # else all of them, of which the loader says what is wrong
            weights = list(choose_weight_files(top, read, where=str(spec)).shards)
        return Selection(small=small, weights=tuple(weights), file=None)
    variants = group_parts(paths)
    if spec.file is not None:
        chosen = _find_gguf(variants, spec.file)
    else:
        chosen = variants[0] if len(variants) == 1 else None
    if chosen is None:
        return None
    model_card = f"{chosen.first.rpartition('/')[0]}/README.md".removeprefix("/")
    small = (model_card,) if model_card in paths else ()  # all else about it is in the file itself
    return Selection(small=small, weights=chosen.paths, file=chosen.first)


def describe_gguf_files(paths: Iterable[str]) -> str:
    """Name the GGUF files there are, as the end of a message; nothing where there are none."""
    names = [parts.name for parts in group_parts(paths)]
    return f"; its GGUF files are {_listed(names)}" if names else ""


def by_quantisation(spec: VariantSpec, paths: Iterable[str]) -> VariantSpec | None:
    """Read a revision that does not exist as a quantisation, where a GGUF file has it.

    paths: of the default revision. Raises RevisionNotFoundError where several files have it.
    """
    if spec.file is not None or spec.revision is None:
        return None
    file = find_quantisation(paths, spec.revision)
    return None if file is None else replace(spec, revision=None, file=file)


def is_small(path: str) -> bool:
    """Tell whether a path is one of the small files that loaders and tokenizers read."""
    if "/" in path:
        return _NAMED_TEMPLATES.fullmatch(path) is not None
    return any(fnmatchcase(path, pattern) for pattern in _SMALL_FILES)


def _choose_gguf(variants: Sequence[GgufParts], spec: VariantSpec) -> GgufParts:
    """Find the variant of a file named whole, or by any of its parts; unnamed, the only one."""
    names = [parts.name for parts in variants]
    if spec.file is None:
        if len(variants) == 1:
            return variants[0]
        raise CheckpointError(
            f"{spec} holds {len(variants)} GGUF files; name one, as in"
            f" {replace(spec, file=names[0])}: {_listed(names)}"
        )
    if (chosen := _find_gguf(variants, spec.file)) is not None:
        return chosen
    near = get_close_matches(spec.file, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise CheckpointError(f"{spec} is not there; its GGUF files are {_listed(names)}{hint}")


def _find_gguf(variants: Iterable[GgufParts], file: str) -> GgufParts | None:
    named = (parts for parts in variants if file == parts.name or file in parts.paths)
    return next(named, None)


def _without_weights(paths: Collection[str], spec: VariantSpec) -> Exception:
    if pickles := sorted(path for path in paths if path.endswith(PICKLE_SUFFIXES)):
        return UnsafeCheckpointError(
            f"{spec.repo} holds its weights as {', '.join(pickles[:4])}: a pickle can run any code"
            " when it is opened, so only safetensors are read; choose a revision that has them"
        )
    return CheckpointError(
        f"{spec} holds no weights: no .safetensors file in its top folder and no GGUF file; it has"
        f" {_listed(sorted(paths))}"
    )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _MAX_NAMES} more" if len(shown) > _MAX_NAMES else ""
    return (", ".join(shown[:_MAX_NAMES]) or "nothing") + more
