"""A checkpoint's files as they lie in one folder: which shards, which tensors, whole or not.

Reads indexes and safetensors headers only, never weights. Everything that could run code or reach
outside the folder is refused here, before anything else opens a file.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.errors import CheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# The format's own limit on a header (safetensors, 100 MB), kept so that a length field cannot
# exhaust memory.
MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 64_000_000
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
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
        return math.prod(self.shape) * _DTYPE_BYTES[self.dtype]


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


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a checkpoint's JSON files, which must hold an object."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path.name} is larger than {MAX_JSON_BYTES} bytes; it is no settings file"
        )
    text = path.read_bytes()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path.name} is a git-lfs pointer, not the file; run `git lfs pull`")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} holds a {type(value).__name__}, expected an object")
    return value


def read_checkpoint(folder: Path) -> Checkpoint:
    """Find the folder's shards and read their headers.

    Raises UnsafeCheckpointError for pickles and paths that leave the folder, CheckpointError for
    missing, truncated or contradictory files; each names the file.
    """
    shards = _find_shards(folder)
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for tensor in read_header(shard):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {tensor.name} is in {tensors[tensor.name].shard.name} and in"
                    f" {shard.name};"
                    " one of the files does not belong here"
                )
            tensors[tensor.name] = tensor
    _check_index(folder, tensors)
    return Checkpoint(folder=folder, shards=shards, tensors=tensors)


def _find_shards(folder: Path) -> tuple[Path, ...]:
    """Name the shards: those of the index, else model.safetensors, else the only such file."""
    index = folder / INDEX_FILE
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
        return tuple(_existing_shard(folder, name) for name in names)
    found = sorted(folder.glob("*.safetensors"))
    whole = [path for path in found if path.name == "model.safetensors"] or found
    if len(whole) > 1:
        raise CheckpointError(
            f"{folder} holds {', '.join(path.name for path in whole[:4])} and no {INDEX_FILE} to"
            " say which belong together; add the index, or keep one file"
        )
    if whole:
        return tuple(whole)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UnsafeCheckpointError(
            f"{folder.name} holds its weights as {', '.join(pickles)}: a pickle can run any code"
            " when it"
            " is opened, so only safetensors are read; choose a revision that has them, or convert"
            " it"
        )
    raise CheckpointError(f"{folder} holds no .safetensors file; found {_listing(folder)}")


def _listing(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index.name} has no weight_map")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index.name} maps a tensor to something that is not a file name")
    return weight_map


def _existing_shard(folder: Path, name: str) -> Path:
    path = folder / name
    if path.parent != folder or name in ("", ".", ".."):
        raise UnsafeCheckpointError(
            f"the index names {name!r}, which is outside the checkpoint's folder"
        )
    if path.suffix != ".safetensors":
        raise UnsafeCheckpointError(f"the index names {name!r}; only .safetensors files are read")
    if not path.exists():
        raise CheckpointError(
            f"shard {name} is missing from {folder}; found {_listing(folder)}; download it again"
        )
    return path


def read_header(shard: Path) -> list[TensorInfo]:
    """Read one shard's header and check that the file holds all the bytes it promises.

    Format: 8 bytes little-endian header length, a JSON object, the data (safetensors' own
    document).
    """
    size = shard.stat().st_size
    with shard.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise CheckpointError(
                f"{shard.name} is a git-lfs pointer, not the file; run `git lfs pull`"
            )
        if len(start) < 8:
            raise CheckpointError(f"{shard.name} is truncated: {size} bytes, not even a header")
        (length,) = struct.unpack("<Q", start)
        if length > min(MAX_HEADER_BYTES, size):
            raise CheckpointError(
                f"{shard.name} is truncated or not safetensors: its header claims {length} bytes,"
                f" the file has {size}"
            )
        text = file.read(length)
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
    if size < 8 + length + end:
        raise CheckpointError(
            f"{shard.name} is truncated: {size} bytes found, {8 + length + end} expected; download"
            " it again"
        )
    return tensors


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a tensor is named twice")
    return dict(pairs)


def _tensor_info(shard: Path, name: str, entry: dict[str, Any]) -> TensorInfo:
    shape = tuple(int(size) for size in entry["shape"])
    begin, end = entry["data_offsets"]
    dtype = str(entry["dtype"])
    if dtype not in _DTYPE_BYTES:
        raise ValueError(f"{name} has the unknown dtype {dtype}")
    info = TensorInfo(name=name, dtype=dtype, shape=shape, shard=shard)
    if min(shape, default=0) < 0 or begin < 0 or end - begin != info.num_bytes:
        raise ValueError(
            f"{name} spans {end - begin} bytes, its shape {list(shape)} needs {info.num_bytes}"
        )
    return info


def _check_index(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    index = folder / INDEX_FILE
    if not index.exists():
        return
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].shard.name != file:
            raise CheckpointError(
                f"the index promises tensor {name} in {file}, which does not hold it"
            )
