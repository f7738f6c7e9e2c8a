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
from loaders.errors import CheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HEADER_START_BYTES = 8  # the length field before a safetensors header
# The format's own limit on a header (safetensors, 100 MB), kept so that a length field cannot
# exhaust memory.
MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 64_000_000  # of an index, or a tokenizer
MAX_SETTINGS_BYTES = 4_000_000  # config.json of the largest models has some kilobytes
# Models of 126 layers have about 4 000 tensors when they are quantised.
MAX_TENSORS = 100_000
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

    @property
    def weights_file(self) -> str:
        """The file to open first: the index where there is one, else the only shard."""
        return INDEX_FILE if (self.folder / INDEX_FILE).exists() else self.shards[0].name

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_json(path: Path, *, most: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """Read one of a checkpoint's JSON files, of at most so many bytes; it must hold an object."""
    return parse_json(path.name, read_regular(path, most=most))


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
    index = folder / INDEX_FILE
    has_index = index.exists()
    weight_map = weight_map_of(read_json(index, most=MAX_JSON_BYTES)) if has_index else None
    names = {path.name for path in folder.iterdir()}
    shards = tuple(folder / name for name in choose_shards(names, weight_map, where=str(folder)))
    tensors = gather_tensors({shard.name: read_header(shard) for shard in shards}, weight_map)
    return Checkpoint(folder=folder, shards=shards, tensors=tensors)


def choose_shards(
    names: Collection[str], weight_map: Mapping[str, str] | None, *, where: str
) -> tuple[str, ...]:
    """Choose the shards among file names: those of the index, model.safetensors, or the only one.

    weight_map: the index's, tensor → file; None without an index. where: for errors.
    """
    if weight_map is not None:
        chosen = sorted(set(weight_map.values()))
        names = frozenset(names)  # a list would be searched through for each of them
        for name in chosen:
            _check_shard(name, names, where)
        return tuple(chosen)
    found = sorted(name for name in names if name.endswith(".safetensors"))
    whole = [name for name in found if name == "model.safetensors"] or found
    if len(whole) > 1:
        raise CheckpointError(
            f"{where} holds {', '.join(whole[:4])} and no {INDEX_FILE} to say which belong"
            " together; add the index, or keep one file"
        )
    if whole:
        return tuple(whole)
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise UnsafeCheckpointError(
            f"{where} holds its weights as {', '.join(pickles[:4])}: a pickle can run any code"
            " when it is opened, so only safetensors are read; choose a revision that has them, or"
            " convert it"
        )
    raise CheckpointError(f"{where} holds no .safetensors file; found {_listing(names)}")


def _listing(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:20]) or "nothing"


def weight_map_of(index: Mapping[str, Any]) -> dict[str, str]:
    """Return which file holds each tensor, as the parsed index says."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE} has no weight_map")
    _check_count(INDEX_FILE, len(weight_map))
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{INDEX_FILE} maps a tensor to something that is not a file name")
    return weight_map


def _check_shard(name: str, names: Collection[str], where: str) -> None:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise UnsafeCheckpointError(
            f"the index names {name!r}, which is outside the checkpoint's folder"
        )
    if not name.endswith(".safetensors"):
        raise UnsafeCheckpointError(f"the index names {name!r}; only .safetensors files are read")
    if name not in names:
        raise CheckpointError(
            f"shard {name} is missing from {where}; found {_listing(names)}; download it again"
        )


def gather_tensors(
    headers: Mapping[str, Sequence[TensorInfo]], weight_map: Mapping[str, str] | None
) -> dict[str, TensorInfo]:
    """Join the shards' tensors by name, and check them against the index where there is one."""
    tensors: dict[str, TensorInfo] = {}
    _check_count("the checkpoint", sum(len(found) for found in headers.values()))
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
    _check_count(shard.name, text.count(b'"data_offsets"'))
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


def _check_count(where: str, num_tensors: int) -> None:
    if num_tensors > MAX_TENSORS:
        raise CheckpointError(
            f"{where} names {num_tensors} tensors; at most {MAX_TENSORS} are read, and no model"
            " that runs here has as many"
        )


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
