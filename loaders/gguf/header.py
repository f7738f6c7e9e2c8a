"""Reads what a GGUF file says of itself: its version, its metadata and its list of tensors.

Bytes are asked for from the front, piece by piece, so a file on a hub can be read by ranges. All of
it is hostile: counts, lengths and nesting are held against limits and the file's size before
anything is made of them, and whatever does not fit raises CheckpointError with what was found.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from loaders.checkpoint.files import GGML_BLOCKS, TensorInfo
from loaders.errors import CheckpointError, UnsupportedQuantizationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    # Gives the bytes from a position on, fewer where the file ends.
    ReadBytes: TypeAlias = Callable[[int, int], bytes]

MAGIC = b"GGUF"
VERSIONS = (1, 2, 3)
# The largest vocabularies known (262 144 pieces, with scores and merges) make headers of 16 MB.
MAX_HEADER_BYTES = 128_000_000
MAX_VALUES = 4_000_000  # in all arrays together
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 65_535  # the format's own limit on keys
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 65_536
MAX_NESTING = 4
DEFAULT_ALIGNMENT = 32
_CHUNK_BYTES = 1_048_576

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9

# ggml's numbers of its types, those of models that have been published.
_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
FLOAT_TYPES = {"F32": 4, "F16": 2, "BF16": 2}
READ_TYPES = (*FLOAT_TYPES, *GGML_BLOCKS)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of a file's list of tensors."""

    name: str
    dtype: str  # by ggml's name
    shape: tuple[int, ...]  # as PyTorch counts: [out, in]
    offset: int  # from the start of the data

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        weights, size = GGML_BLOCKS.get(self.dtype, (1, FLOAT_TYPES.get(self.dtype, 0)))
        return math.prod(self.shape) // weights * size


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the data."""

    version: int
    metadata: Mapping[str, Any]  # arrays are tuples
    tensors: tuple[GgufTensor, ...]
    num_bytes: int  # of the header itself, padding not counted
    alignment: int

    @property
    def data_start(self) -> int:
        """Where the tensors' data begins."""
        return -(-self.num_bytes // self.alignment) * self.alignment

    @property
    def file_bytes(self) -> int:
        """How large a file must be to hold every tensor."""
        ends = (tensor.offset + tensor.num_bytes for tensor in self.tensors)
        return self.data_start + max(ends) if self.tensors else self.num_bytes

    def tensor_infos(self, path: Path) -> dict[str, TensorInfo]:
        """List the tensors as other checkpoints' are listed, under GGUF's names."""
        return {
            tensor.name: TensorInfo(tensor.name, tensor.dtype, tensor.shape, path)
            for tensor in self.tensors
        }


def read_header(name: str, read: ReadBytes, *, num_bytes: int | None = None) -> GgufHeader:
    """Read a file's header; name: what messages call the file.

    num_bytes: of the whole file, where that is known; then all tensors must lie inside. Raises
    CheckpointError, and UnsupportedQuantizationError for types of blocks that are not read.
    """
    cursor = _Cursor(name, read, num_bytes)
    version = _read_version(cursor)
    cursor.length_format = "<I" if version == 1 else "<Q"
    num_tensors = cursor.count("tensors", MAX_TENSORS)
    num_keys = cursor.count("metadata keys", MAX_KEYS)
    metadata = _read_metadata(cursor, num_keys)
    tensors = _read_tensors(cursor, num_tensors)
    alignment = _checked_alignment(cursor, metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    header = GgufHeader(version, metadata, tensors, cursor.position, alignment)
    _check_placement(cursor, header)
    if num_bytes is not None and num_bytes < header.file_bytes:
        raise CheckpointError(
            f"{name} is truncated: {num_bytes} bytes found, {header.file_bytes} expected; download"
            " it again"
        )
    return header


class _Cursor:
    """Walks through the header's bytes, fetching them as they are needed."""

    def __init__(self, name: str, read: ReadBytes, num_bytes: int | None) -> None:
        self.name = name
        self.position = 0
        self.num_values = 0  # of all arrays so far
        self.length_format = "<Q"
        self._read = read
        self._num_bytes = num_bytes
        self._pieces = bytearray()

    def damaged(self, problem: str) -> CheckpointError:
        """Make the error that says what is wrong, and where."""
        return CheckpointError(
            f"{self.name} has a damaged GGUF header: {problem} (byte {self.position}); download it"
            " again"
        )

    def take(self, num_bytes: int) -> bytearray:
        """Read the next bytes."""
        start, end = self.position, self.position + num_bytes
        if end > len(self._pieces):
            self._fetch(end)
        self.position = end
        return self._pieces[start:end]

    def _fetch(self, end: int) -> None:
        if end > MAX_HEADER_BYTES:
            raise self.damaged(f"something in it claims to reach to byte {end}")
        while len(self._pieces) < end:
            found = len(self._pieces)
            wanted = max(_CHUNK_BYTES, end - found)
            piece = self._read(found, wanted) if self._may_have(end) else b""
            if not piece:
                size = found if self._num_bytes is None else self._num_bytes
                raise CheckpointError(
                    f"{self.name} is truncated: {size} bytes found, its header goes on to byte"
                    f" {end} at least; download it again"
                )
            self._pieces += piece

    def _may_have(self, end: int) -> bool:
        return self._num_bytes is None or end <= self._num_bytes

    def number(self, code: str) -> Any:
        """Read one number; code: struct's letter for it."""
        layout = struct.Struct(f"<{code}")
        return layout.unpack(self.take(layout.size))[0]

    def length(self) -> int:
        """Read a count or a length, 32 bits wide in version 1."""
        return int(self.number(self.length_format[1]))

    def count(self, what: str, most: int) -> int:
        """Read a count that must not be larger than `most`."""
        found = self.length()
        if found > most:
            raise self.damaged(f"it claims {found} {what}, at most {most} are read")
        return found

    def text(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        """Read a string."""
        length = self.length()
        if length > most:
            raise self.damaged(f"{what} claims a length of {length} bytes")
        return self._decode(self.take(length), what)

    def texts(self, count: int, what: str) -> tuple[str, ...]:
        """Read that many strings: a vocabulary of 150 000 pieces in 0.1 s."""
        take, unpack = self.take, struct.Struct(self.length_format).unpack
        width = struct.calcsize(self.length_format)
        return tuple(self._decode(take(*unpack(take(width))), what) for _ in range(count))

    def _decode(self, text: bytearray, what: str) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8 ({error.reason})") from error


def _read_version(cursor: _Cursor) -> int:
    start = cursor.take(8)
    if start.startswith(b"version "):
        raise CheckpointError(
            f"{cursor.name} is a git-lfs pointer, not the file; run `git lfs pull`"
        )
    if start[:4] != MAGIC:
        raise CheckpointError(
            f"{cursor.name} is no GGUF file: it begins with {bytes(start[:4])!r}, not {MAGIC!r};"
            " older formats (ggml, ggjt) must be converted first"
        )
    (version,) = struct.unpack("<I", start[4:])
    if version in VERSIONS:
        return int(version)
    if struct.unpack(">I", start[4:])[0] in VERSIONS:
        raise CheckpointError(
            f"{cursor.name} is a big-endian GGUF file; little-endian ones are read, convert it"
        )
    raise CheckpointError(
        f"{cursor.name} is of GGUF version {version}; versions {', '.join(map(str, VERSIONS))} are"
        " read"
    )


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.damaged(f"the metadata key {key[:80]!r} is there twice")
        metadata[key] = _read_value(cursor, cursor.number("I"), key[:80], depth=0)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str, *, depth: int) -> Any:
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind])
    if kind == _BOOL:
        return bool(cursor.number("B"))
    if kind == _STRING:
        return cursor.text(key)
    if kind == _ARRAY:
        return _read_array(cursor, key, depth=depth + 1)
    raise cursor.damaged(f"{key} is of the unknown type {kind}")


def _read_array(cursor: _Cursor, key: str, *, depth: int) -> tuple[Any, ...]:
    if depth > MAX_NESTING:
        raise cursor.damaged(f"{key} nests arrays deeper than {MAX_NESTING}")
    kind = cursor.number("I")
    count = cursor.count(f"values in {key}", MAX_VALUES)
    cursor.num_values += count
    if cursor.num_values > MAX_VALUES:
        raise cursor.damaged(f"its arrays hold more than {MAX_VALUES} values")
    if kind in _NUMBERS or kind == _BOOL:
        layout = struct.Struct(f"<{count}{_NUMBERS.get(kind, '?')}")
        return layout.unpack(cursor.take(layout.size))
    if kind == _STRING:
        return cursor.texts(count, key)
    return tuple(_read_value(cursor, kind, key, depth=depth) for _ in range(count))


def _read_tensors(cursor: _Cursor, num_tensors: int) -> tuple[GgufTensor, ...]:
    tensors: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _read_tensor(cursor)
        if tensor.name in tensors:
            raise cursor.damaged(f"the tensor {tensor.name!r} is there twice")
        tensors[tensor.name] = tensor
    return tuple(tensors.values())


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text("a tensor's name", 256)
    num_dimensions = cursor.number("I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.damaged(
            f"the tensor {name!r} claims {num_dimensions} dimensions, 1 to {MAX_DIMENSIONS} are"
            " possible"
        )
    # The innermost dimension comes first here, last in PyTorch.
    shape = tuple(cursor.length() for _ in range(num_dimensions))[::-1]
    dtype = _type_name(name, cursor.number("I"))
    offset = cursor.number("Q")
    if min(shape) < 1 or math.prod(shape) >= 2**63:
        raise cursor.damaged(f"the tensor {name!r} claims the shape {list(shape)}")
    if shape[-1] % GGML_BLOCKS.get(dtype, (1, 0))[0]:
        raise cursor.damaged(f"the rows of {name!r}, {shape[-1]} long, are no whole {dtype} blocks")
    return GgufTensor(name, dtype, shape, offset)


def _type_name(tensor: str, number: int) -> str:
    name = _TYPE_NAMES.get(number, f"type {number}")
    if name not in READ_TYPES:
        raise UnsupportedQuantizationError(
            f"{tensor} is stored as {name}, which is not read; read are {', '.join(READ_TYPES)}"
        )
    return name


def _checked_alignment(cursor: _Cursor, alignment: object) -> int:
    if (
        not isinstance(alignment, int)
        or not 1 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise cursor.damaged(f"general.alignment is {str(alignment)[:40]}, expected a power of two")
    return alignment


def _check_placement(cursor: _Cursor, header: GgufHeader) -> None:
    """Raise unless every tensor begins where it may and none reaches into another."""
    end, previous = 0, ""
    for tensor in sorted(header.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset % header.alignment:
            raise cursor.damaged(
                f"{tensor.name} begins at {tensor.offset}, no multiple of {header.alignment}"
            )
        if tensor.offset < end:
            raise cursor.damaged(f"{tensor.name} and {previous} overlap")
        end, previous = tensor.offset + tensor.num_bytes, tensor.name
