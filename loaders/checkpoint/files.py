"""A checkpoint's files as they lie in one folder: which shards, which tensors, whole or not.

Reads indexes and safetensors headers only, never weights. Everything that could run code or reach
outside the folder is refused here, before anything else opens a file.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.checkpoint.regular_files import open_regular, read_regular
from loaders.checkpoint.weight_files import (
    INDEX_SUFFIX,
    MAX_TENSORS,
    check_count,
    choose_weight_files,
)
from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HEADER_START_BYTES = 8  # the length field before a safetensors header
# The format's own limit on a header (safetensors, 100 MB), kept so that a length field cannot
# exhaust memory.
MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 64_000_000  # of an index, or a tokenizer
MAX_SETTINGS_BYTES = 4_000_000  # config.json of the largest models has some kilobytes
_MAX_DIMENSIONS = 16
# Numbers, texts, lists and objects in a header of that many tensors; counted before it is parsed,
# as 100 MB of empty lists would take gigabytes.
_MAX_HEADER_VALUES = 20 * MAX_TENSORS
# All that safetensors knows; most are only known to be refused by their names.
_DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
# GGUF's block types: weights a block, bytes a block (ggml's own definitions of its blocks).
GGML_BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says of one tensor."""

    name: str
    dtype: str  # safetensors' own names (F16, BF16, F32, I32, …), or a block type of GGUF's
    shape: tuple[int, ...]
    shard: Path

    @property
    def num_bytes(self) -> int:
        """Size of the data in bytes."""
        if self.dtype in GGML_BLOCKS:
            weights, size = GGML_BLOCKS[self.dtype]
            return math.prod(self.shape) // weights * size
        return math.prod(self.shape) * _DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The safetensors files of one folder, and every tensor in them by name."""

    folder: Path
    shards: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    index_file: str | None = None  # by which Transformers finds the shards; None without one

    @property
    def weights_file(self) -> str | None:
        """The file that leads Transformers to all shards; None where there is none such."""
        if self.index_file is None and len(self.shards) > 1:
            return None
        return self.index_file or self.shards[0].name

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_json(path: Path, *, most: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """Read one of a checkpoint's JSON files, of at most so many bytes; it must hold an object."""
    return parse_json(path.name, read_regular(path, most=most))


def read_named(folder: Path, name: str) -> dict[str, Any]:
    """Read one of a folder's JSON files by its name; an index may be larger than settings."""
    is_index = name.endswith(INDEX_SUFFIX)
    return read_json(folder / name, most=MAX_JSON_BYTES if is_index else MAX_SETTINGS_BYTES)


def parse_json(name: str, text: bytes) -> dict[str, Any]:
    """Parse the content of a settings file, which must be an object; `name` is for errors."""
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{name} is a git-lfs pointer, not the file; run `git lfs pull`")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds a {type(value).__name__}, expected an object")
    return value


def read_checkpoint(folder: Path) -> Checkpoint:
    """Find the folder's shards and read their headers.

    Raises UnsafeCheckpointError for pickles and paths that leave the folder, CheckpointError for
    missing, truncated or contradictory files; each names the file.
    """
    found = choose_weight_files(
        [path.name for path in folder.iterdir()],
        lambda name: read_named(folder, name),
        where=str(folder),
    )
    shards = tuple(folder / name for name in found.shards)
    tensors = gather_tensors({shard.name: read_header(shard) for shard in shards}, found.weight_map)
    # Transformers wants an index to have metadata, which not everyone wrote.
    has_metadata = found.index is not None and isinstance(found.index.get("metadata"), dict)
    index_file = found.index_file if has_metadata else None
    return Checkpoint(folder=folder, shards=shards, tensors=tensors, index_file=index_file)


def gather_tensors(
    headers: Mapping[str, Sequence[TensorInfo]], weight_map: Mapping[str, str] | None
) -> dict[str, TensorInfo]:
    """Join the shards' tensors by name, and check them against the index where there is one."""
    tensors: dict[str, TensorInfo] = {}
    check_count("the checkpoint", sum(len(found) for found in headers.values()))
    for shard, found in headers.items():
        for tensor in found:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {tensor.name} is in {tensors[tensor.name].shard.name} and in {shard};"
                    " one of the files does not belong here"
                )
            tensors[tensor.name] = tensor
    for name, file in (weight_map or {}).items():
        if name not in tensors or tensors[name].shard.name != file:
            raise CheckpointError(
                f"the index promises tensor {name} in {file}, which does not hold it"
            )
    return tensors


def read_header(shard: Path) -> list[TensorInfo]:
    """Read one shard's header and check that the file holds all the bytes it promises."""
    with open_regular(shard) as file:
        size = os.fstat(file.fileno()).st_size
        length = read_header_length(shard.name, file.read(HEADER_START_BYTES), size)
        text = file.read(length)
    return parse_header(shard, text, size)


def read_header_length(name: str, start: bytes, size: int) -> int:
    """Return how long the header is that follows a shard's first 8 bytes.

    Format: 8 bytes little-endian header length, a JSON object, the data (safetensors' own
    document). size: the whole file's, in bytes.
    """
    if start.startswith(b"version "):
        raise CheckpointError(f"{name} is a git-lfs pointer, not the file; run `git lfs pull`")
    if len(start) < HEADER_START_BYTES:
        raise CheckpointError(f"{name} is truncated: {size} bytes, not even a header")
    (length,) = struct.unpack("<Q", start[:HEADER_START_BYTES])
    if length > min(MAX_HEADER_BYTES, size):
        raise CheckpointError(
            f"{name} is truncated or not safetensors: its header claims {length} bytes,"
            f" the file has {size}"
        )
    return int(length)


def parse_header(shard: Path, text: bytes, size: int) -> list[TensorInfo]:
    """Parse a shard's header, the JSON after its first 8 bytes, and check it against the size.

    Raises CheckpointError where the file is too small for what the header promises, or where
    tensors share bytes.
    """
    check_count(shard.name, text.count(b'"data_offsets"'))
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > _MAX_HEADER_VALUES:
        raise CheckpointError(
            f"{shard.name} has a damaged header: it holds more than {MAX_TENSORS} tensors need"
        )
    try:
        header = json.loads(text, object_pairs_hook=_unique_keys)
        tensors = [
            _tensor_info(shard, name, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{shard.name} has a damaged header: {error}") from error
    end = max((int(header[t.name]["data_offsets"][1]) for t in tensors), default=0)
    expected = HEADER_START_BYTES + len(text) + end
    if size < expected:
        raise CheckpointError(
            f"{shard.name} is truncated: {size} bytes found, {expected} expected; download it again"
        )
    if sum(tensor.num_bytes for tensor in tensors) > end:
        raise CheckpointError(f"{shard.name} has a damaged header: its tensors share bytes")
    return tensors


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a tensor is named twice")
    return dict(pairs)


def _tensor_info(shard: Path, name: str, entry: dict[str, Any]) -> TensorInfo:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if len(shape) > _MAX_DIMENSIONS or not all(_is_count(n) for n in (*shape, begin, end)):
        raise ValueError(
            f"{name} has a shape or offsets that are not at most {_MAX_DIMENSIONS} whole numbers"
        )
    dtype = str(entry["dtype"])
    if dtype not in _DTYPE_BITS:
        raise ValueError(f"{name} has the unknown dtype {dtype}")
    info = TensorInfo(name=name, dtype=dtype, shape=shape, shard=shard)
    if end - begin != info.num_bytes:
        raise ValueError(
            f"{name} spans {end - begin} bytes, its shape {list(shape)} needs {info.num_bytes}"
        )
    return info
