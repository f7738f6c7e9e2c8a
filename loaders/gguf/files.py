"""A GGUF model's bytes, in however many files they come: whole, cut in pieces, or a set of shards.

`name.gguf-split-a`, `-split-b`, … are one file that was cut: read as if joined, without joining it
on disk. `name-00001-of-00003.gguf`, … are whole GGUF files, each with some of the tensors. Tensors
are views of the mapped files; only one that straddles a cut is copied.
"""

from __future__ import annotations

import itertools
import math
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loaders.errors import CheckpointError, UnsafeCheckpointError
from loaders.gguf.header import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    GgufHeader,
    GgufTensor,
    read_header,
)
from loaders.gguf.parts import CUT, SHARD, is_gguf

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

MAX_SHARDS = 1000
_VALUE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class JoinedFile:
    """Pieces of one file, read as if they lay behind each other in one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        sizes = [path.stat().st_size for path in paths]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        # Mapped, not read; an empty file cannot be.
        self._maps = [
            torch.from_file(str(path), size=size, dtype=torch.uint8) if size else _NOTHING
            for path, size in zip(paths, sizes, strict=True)
        ]

    @property
    def num_bytes(self) -> int:
        """Size of all pieces."""
        return self._starts[-1]

    def read(self, start: int, num_bytes: int) -> bytes:
        """Read bytes from a position on; fewer where the file ends."""
        return b"".join(part.numpy().tobytes() for part in self._parts(start, num_bytes))

    def view(self, start: int, num_bytes: int) -> Tensor:
        """Give the bytes as uint8 [num_bytes]: of the mapped file, or joined from two of them."""
        parts = list(self._parts(start, num_bytes))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _parts(self, start: int, num_bytes: int) -> Iterator[Tensor]:
        end = min(start + num_bytes, self.num_bytes)
        for first, mapped in zip(self._starts, self._maps, strict=False):
            low, high = max(start - first, 0), min(end - first, len(mapped))
            if low < high:
                yield mapped[low:high]


_NOTHING = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """A whole model: its metadata and every tensor, wherever it lies."""

    path: Path  # the first file
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    shards: tuple[tuple[JoinedFile, GgufHeader], ...]
    places: Mapping[str, int]  # the shard of each tensor

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file on disk."""
        return tuple(path for file, _ in self.shards for path in file.paths)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def stored(self, name: str) -> Tensor:
        """Give a tensor as it is stored: uint8 [..., bytes per row]."""
        tensor = self.tensors[name]
        file, header = self.shards[self.places[name]]
        flat = file.view(header.data_start + tensor.offset, tensor.num_bytes)
        return flat.view(*tensor.shape[:-1], tensor.num_bytes // math.prod(tensor.shape[:-1]))

    def values(self, name: str) -> Tensor:
        """Give a float tensor in its own dtype and shape."""
        stored, dtype = self.stored(name), _VALUE_DTYPES[self.tensors[name].dtype]
        if stored.storage_offset() % dtype.itemsize:
            stored = stored.clone()  # a cut has put it where no such number can begin
        return stored.view(dtype)


def open_files(path: Path) -> GgufFiles:
    """Open a GGUF model by its (first) file and check that nothing of it is missing.

    Raises CheckpointError for what is damaged, truncated or missing; each names the file.
    """
    whole = [JoinedFile(pieces) for pieces in _files_of(path)]
    shards = tuple(_with_headers(whole))
    tensors: dict[str, GgufTensor] = {}
    places: dict[str, int] = {}
    for number, (file, header) in enumerate(shards):
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {tensor.name} is in {whole[places[tensor.name]].paths[0].name} and in"
                    f" {file.paths[0].name}; one of the files does not belong here"
                )
            tensors[tensor.name], places[tensor.name] = tensor, number
    _check_set(shards, len(tensors))
    return GgufFiles(path, shards[0][1].metadata, tensors, shards, places)


def _with_headers(whole: Sequence[JoinedFile]) -> Iterator[tuple[JoinedFile, GgufHeader]]:
    """Read the files' headers, which together must not be larger than one may be."""
    num_bytes = num_tensors = 0
    for file in whole:
        name = file.paths[0].name
        header = read_header(name, file.read, num_bytes=file.num_bytes)
        num_bytes, num_tensors = num_bytes + header.num_bytes, num_tensors + len(header.tensors)
        if num_bytes > MAX_HEADER_BYTES or num_tensors > MAX_TENSORS:
            raise CheckpointError(
                f"the headers up to {name} have {num_bytes} bytes and list {num_tensors} tensors;"
                f" a set's together may have {MAX_HEADER_BYTES} and {MAX_TENSORS}"
            )
        yield file, header


def find_file(folder: Path, name: str | None) -> Path | None:
    """Find the GGUF model meant in a folder: the one named, or the only one there is.

    Returns None where the folder holds none and none is named.
    """
    if name is not None:
        return _named_file(folder, name)
    firsts = sorted({first_file(path) for path in folder.iterdir() if is_gguf(path.name)})
    if len(firsts) > 1:
        raise CheckpointError(
            f"{folder} holds {len(firsts)} GGUF models:"
            f" {', '.join(path.name for path in firsts[:8])}; name one, as in"
            f" {folder.name}/{firsts[0].name}"
        )
    return firsts[0] if firsts else None


def first_file(path: Path) -> Path:
    """Name the first of the files that a model comes in, given any of them."""
    if match := CUT.fullmatch(path.name):
        return path.with_name(path.name[:-1] + ("A" if match["letter"].isupper() else "a"))
    if match := SHARD.fullmatch(path.name):
        start, end = match.span("number")
        return path.with_name(f"{path.name[:start]}{1:05}{path.name[end:]}")
    return path


def _named_file(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not is_gguf(path.name):
        raise UnsafeCheckpointError(f"{name!r} is no GGUF file inside {folder}")
    first = first_file(path)
    if not first.is_file() and (first.parent / f"{first.name}-split-a").is_file():
        return first.parent / f"{first.name}-split-a"  # published in pieces, named as a whole
    return first


def _files_of(path: Path) -> list[list[Path]]:
    """List the whole files of a model, each with the pieces it was cut into."""
    if match := CUT.fullmatch(path.name):
        return [_pieces(path, match["stem"])]
    if match := SHARD.fullmatch(path.name):
        return [[_existing(shard)] for shard in _shard_paths(path, match)]
    return [[_existing(path)]]


def _pieces(path: Path, stem: str) -> list[Path]:
    letters = string.ascii_uppercase if path.name[-1].isupper() else string.ascii_lowercase
    named = [path.with_name(path.name[:-1] + letter) for letter in letters]
    found = [piece for piece in named if piece.is_file()]
    for expected in named[: len(found)] or named[:1]:
        if expected not in found:
            raise CheckpointError(
                f"{expected.name}, a part of {stem}, is missing from {path.parent}; download it"
                " again"
            )
    return found


def _shard_paths(path: Path, match: re.Match[str]) -> list[Path]:
    count = int(match["count"])
    if not 1 <= count <= MAX_SHARDS:
        raise CheckpointError(
            f"{path.name} claims to be one of {count} files, at most {MAX_SHARDS} are read"
        )
    return [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing from {path.parent}; download it again")
    return path


def _check_set(shards: Sequence[tuple[JoinedFile, GgufHeader]], num_tensors: int) -> None:
    """Raise unless the files say themselves that they are this set, whole."""
    for number, (file, header) in enumerate(shards):
        name, get = file.paths[0].name, header.metadata.get
        count = get("split.count", 1)
        if len(shards) == 1 and count in (0, 1):
            continue
        if (get("split.no"), count) != (number, len(shards)):
            raise CheckpointError(
                f"{name} says it is part {get('split.no')} of {count}, expected part {number} of"
                f" {len(shards)}; the files are not of one set"
            )
        if get("split.tensors.count", num_tensors) != num_tensors:
            raise CheckpointError(
                f"{name} says the set holds {get('split.tensors.count')} tensors, found are"
                f" {num_tensors}; the files are not of one set"
            )
