"""Reads a SentencePiece model, `tokenizer.model`: its pieces, and how text is prepared for them.

The format is sentencepiece_model.proto of google/sentencepiece; field numbers below are that
file's. The sentencepiece library reads the same file, but does not tell how text is prepared
without Google's protobuf library, which nothing else here needs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    # By field number: whole numbers, or the bytes of texts, parts and 32- and 64-bit values.
    Fields: TypeAlias = Mapping[int, list[int | bytes]]

# Gemma's, the largest known, has 4 MB.
MAX_MODEL_BYTES = 64_000_000
_MAX_VARINT_BYTES = 10
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_CHARSMAP = 2  # of a normaliser


class PieceKind(IntEnum):
    """What a piece stands for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Algorithm(IntEnum):
    """How text is cut into pieces."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceFile:
    """What a model file says."""

    content: bytes
    pieces: tuple[Piece, ...]
    algorithm: Algorithm
    falls_back_to_bytes: bool
    adds_prefix: bool  # a space before every text
    trims_spaces: bool  # and joins runs of them
    marks_spaces: bool  # as "▁"
    spaces_end_words: bool  # and do not begin them
    charsmap: bytes  # how characters are normalised; empty for not at all
    restores_characters: bool  # in text that comes out


def read_sentencepiece_file(path: Path) -> SentencePieceFile:
    """Read a model file. Raises CheckpointError, which says what it is where it is another kind."""
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise CheckpointError(f"{path.name} is larger than {MAX_MODEL_BYTES} bytes; no model is")
    content = path.read_bytes()
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path.name} is a git-lfs pointer, not the file; run `git lfs pull`")
    try:
        return _parse(content)
    except (ValueError, IndexError, struct.error, TypeError) as error:
        kind = "a tiktoken file" if _is_tiktoken(content) else f"no SentencePiece model ({error})"
        raise CheckpointError(
            f"{path.name} is {kind}; add the tokenizer.json that belongs to the checkpoint"
        ) from error


def _is_tiktoken(content: bytes) -> bool:
    """Whether it begins as tiktoken's files do, with a token in base64 and its rank."""
    token, _, rank = content[:200].partition(b"\n")[0].partition(b" ")
    return token.isascii() and rank.isdigit()


def _parse(content: bytes) -> SentencePieceFile:
    fields = _fields(content)
    pieces = tuple(_piece(_bytes(value)) for value in fields.get(_PIECES, []))
    if not pieces:
        raise ValueError("it holds no pieces")
    if _TRAINER not in fields or _NORMALIZER not in fields:
        raise ValueError("it ends before it says how text is cut")
    trainer, normalizer, denormalizer = (
        _fields(_last_bytes(fields, number)) for number in (_TRAINER, _NORMALIZER, _DENORMALIZER)
    )
    return SentencePieceFile(
        content=content,
        pieces=pieces,
        algorithm=Algorithm(_number(trainer, 3, default=1)),
        falls_back_to_bytes=bool(_number(trainer, 35, default=0)),
        adds_prefix=bool(_number(normalizer, 3, default=1)),
        trims_spaces=bool(_number(normalizer, 4, default=1)),
        marks_spaces=bool(_number(normalizer, 5, default=1)),
        spaces_end_words=bool(_number(trainer, 24, default=0)),
        charsmap=_last_bytes(normalizer, _CHARSMAP),
        restores_characters=bool(_last_bytes(denormalizer, _CHARSMAP)),
    )


def _piece(content: bytes) -> Piece:
    fields = _fields(content)
    score = struct.unpack("<f", _last_bytes(fields, 2))[0] if 2 in fields else 0.0
    return Piece(_last_bytes(fields, 1).decode(), score, PieceKind(_number(fields, 3, default=1)))


def _number(fields: Fields, number: int, *, default: int) -> int:
    value = fields[number][-1] if number in fields else default
    if isinstance(value, bytes):
        raise ValueError(f"field {number} is no number")
    return value


def _last_bytes(fields: Fields, number: int) -> bytes:
    return _bytes(fields[number][-1]) if number in fields else b""


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where text was expected")
    return value


def _fields(content: bytes) -> dict[int, list[int | bytes]]:
    found: dict[int, list[int | bytes]] = {}
    for number, value in _walk(content):
        found.setdefault(number, []).append(value)
    return found


def _walk(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field of a message (protobuf's wire format)."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(content, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"a field has the unknown type {wire_type}")
        if number == 0 or at + size > len(content):
            raise ValueError("it ends within a field")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte, the lowest first; return it and where the next begins."""
    value = 0
    for position in range(_MAX_VARINT_BYTES):
        byte = content[at + position]
        value |= (byte & 0x7F) << 7 * position
        if not byte & 0x80:
            return value, at + position + 1
    raise ValueError("a number is too long")
