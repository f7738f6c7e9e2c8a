"""Packs small integers into int32 words and back, in every layout that checkpoints use.

GPTQ packs along the input dimension, its zero points along the output dimension; AWQ's GEMM version
packs both along the output dimension in a shuffled column order, its GEMV versions along the input
dimension. This module knows layouts only: what a code
means (scale, zero, group, act order) belongs to the layers, what a tensor is called to the
checkpoint's reader.

Codes are uint8 [in_features, out_features], GPTQ's orientation. Zero points are true ones, in
[0, 2**bits), uint8 [num_groups, out_features].
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

CheckpointFormat: TypeAlias = Literal["gptq", "gptq_v2"]

GPTQ_BITS = (2, 3, 4, 8)
AWQ_BITS = 4

_WORD_BITS = 32
# The column that each 4-bit field of a word holds, lowest field first (AWQ's GEMM version).
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
# Inputs of one output that AWQ's GEMV-fast version stores side by side.
_FAST_RUN = 64


def pack_gptq_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the input dimension: uint8 [in, out] to int32 [in * bits / 32, out].

    Each column is one dense little-endian bit stream, so 3-bit codes cross word borders.
    Raises ValueError where a column does not fill whole words or a code needs more bits.
    """
    _check_bits(bits)
    _check_codes(codes, bits)
    per_chunk, words = _chunk(bits)
    if codes.shape[0] % per_chunk:
        raise ValueError(
            f"{codes.shape[0]} codes of {bits} bits do not fill whole {_WORD_BITS}-bit words: "
            f"the packed dimension must be a multiple of {per_chunk}"
        )

    chunks = codes.reshape(-1, per_chunk, codes.shape[1])
    packed = chunks.new_zeros(len(chunks), words, codes.shape[1], dtype=torch.int32)
    for position in range(per_chunk):
        word, shift = divmod(position * bits, _WORD_BITS)
        code = chunks[:, position].to(torch.int32)
        packed[:, word] |= code << shift
        if shift + bits > _WORD_BITS:
            packed[:, word + 1] |= code >> (_WORD_BITS - shift)
    return packed.reshape(-1, codes.shape[1])


def unpack_gptq_codes(qweight: Tensor, bits: int) -> Tensor:
    """Undo `pack_gptq_codes`: int32 [in * bits / 32, out] to uint8 [in, out]."""
    _check_bits(bits)
    return unpack_stream(qweight, bits)


def unpack_stream(qweight: Tensor, bits: int) -> Tensor:
    """Read each column as one dense little-endian bit stream, of codes of 1 to 8 bits.

    qweight: int32 [in * bits / 32, out]; gives uint8 [in, out].
    """
    _check_words(qweight)
    per_chunk, words = _chunk(bits)
    if qweight.shape[0] % words:
        raise ValueError(
            f"{qweight.shape[0]} words do not hold a whole number of {bits}-bit codes: "
            f"the packed dimension must be a multiple of {words}"
        )

    chunks = qweight.reshape(-1, words, qweight.shape[1])
    codes = chunks.new_empty(len(chunks), per_chunk, qweight.shape[1], dtype=torch.uint8)
    for position in range(per_chunk):
        word, shift = divmod(position * bits, _WORD_BITS)
        # The shift drags copies of the sign bit in from above; the mask removes them.
        in_this_word = min(bits, _WORD_BITS - shift)
        code = (chunks[:, word] >> shift) & _mask(in_this_word)
        if in_this_word < bits:
            code |= (chunks[:, word + 1] & _mask(bits - in_this_word)) << in_this_word
        codes[:, position] = code
    return codes.reshape(-1, qweight.shape[1])


def pack_gptq_zeros(zeros: Tensor, bits: int, *, checkpoint_format: CheckpointFormat) -> Tensor:
    """Pack zero points along the output dimension.

    zeros: uint8 [groups, out]; gives int32 [groups, out * bits / 32].
    "gptq" (v1) stores each zero minus one, modulo 2**bits; "gptq_v2" stores it as it is.
    """
    _check_bits(bits)
    _check_codes(zeros, bits)
    stored = (zeros - 1) & _mask(bits) if checkpoint_format == "gptq" else zeros
    return pack_gptq_codes(stored.t(), bits).t().contiguous()


def unpack_gptq_zeros(qzeros: Tensor, bits: int, *, checkpoint_format: CheckpointFormat) -> Tensor:
    """Undo `pack_gptq_zeros`: int32 [groups, out * bits / 32] to uint8 [groups, out]."""
    stored = unpack_gptq_codes(qzeros.t(), bits).t()
    zeros = (stored + 1) & _mask(bits) if checkpoint_format == "gptq" else stored
    return zeros.contiguous()


def pack_awq(values: Tensor) -> Tensor:
    """Pack 4-bit codes or zeros along the output dimension.

    values: uint8 [rows, out]; gives int32 [rows, out / 8].
    Within each word the columns come in the order 0 2 4 6 1 3 5 7, lowest field first.
    """
    _check_codes(values, AWQ_BITS)
    rows, columns = values.shape
    if columns % len(_AWQ_COLUMNS):
        raise ValueError(
            f"AWQ packs columns by {len(_AWQ_COLUMNS)}, and {columns} is no multiple of it"
        )

    fields = values.reshape(rows, -1, len(_AWQ_COLUMNS))
    packed = fields.new_zeros(fields.shape[:2], dtype=torch.int32)
    for field, column in enumerate(_AWQ_COLUMNS):
        packed |= fields[:, :, column].to(torch.int32) << (field * AWQ_BITS)
    return packed


def unpack_awq(packed: Tensor) -> Tensor:
    """Undo `pack_awq`: int32 [rows, out / 8] to uint8 [rows, out]."""
    _check_words(packed)
    values = packed.new_empty(*packed.shape, len(_AWQ_COLUMNS), dtype=torch.uint8)
    for field, column in enumerate(_AWQ_COLUMNS):
        values[:, :, column] = (packed >> (field * AWQ_BITS)) & _mask(AWQ_BITS)
    return values.reshape(packed.shape[0], -1)


def unpack_gemv(words: Tensor) -> Tensor:
    """Unpack AWQ's GEMV version: int32 [rows, n], eight codes a word in order, to uint8 [rows, 8n].

    Codes and zero points alike run along the inputs.
    """
    return unpack_stream(words.t(), AWQ_BITS).t().contiguous()


def unpack_gemv_fast(words: Tensor) -> Tensor:
    """Unpack the codes of AWQ's GEMV-fast version: int16 [out / 4, in] to uint8 [out, in].

    A row of words holds four outputs, each 64 inputs of one followed by the same 64 of the next:

        word   0…15   16…31   32…47   48…63   64…79 …
        output 4r     4r+1    4r+2    4r+3    4r    …
        inputs 0…63   0…63    0…63    0…63    64…127 …

    and of 32 inputs, number 8a + j (a < 4, j < 8) stands at place 4j + a. A word holds four
    neighbours, lowest bits first.
    """
    if words.dtype != torch.int16 or words.ndim != 2 or words.shape[1] % _FAST_RUN:
        raise ValueError(
            f"packed words must be int16 with rows of a multiple of {_FAST_RUN}, not {words.dtype}"
            f" {list(words.shape)}"
        )
    rows, in_features = words.shape
    fields = torch.stack([(words >> shift) & _mask(AWQ_BITS) for shift in (0, 4, 8, 12)], dim=-1)
    by_output = fields.to(torch.uint8).view(rows, -1, 4, _FAST_RUN).transpose(1, 2)
    places = by_output.reshape(rows * 4, in_features // 32, 8, 4)
    return places.transpose(2, 3).reshape(rows * 4, in_features)


def _chunk(bits: int) -> tuple[int, int]:
    """The smallest number of codes that fills whole words, and the number of those words."""
    common = math.gcd(bits, _WORD_BITS)
    return _WORD_BITS // common, bits // common


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def _check_bits(bits: int) -> None:
    if bits not in GPTQ_BITS:
        raise ValueError(
            f"no layout for {bits}-bit codes; GPTQ packs {', '.join(map(str, GPTQ_BITS))}"
        )


def _check_codes(codes: Tensor, bits: int) -> None:
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise ValueError(f"codes must be a uint8 matrix, not {codes.dtype} {list(codes.shape)}")
    if codes.numel() and int(codes.max()) > _mask(bits):
        raise ValueError(f"code {int(codes.max())} does not fit in {bits} bits")


def _check_words(words: Tensor) -> None:
    if words.dtype != torch.int32 or words.ndim != 2:
        raise ValueError(
            f"packed words must be an int32 matrix, not {words.dtype} {list(words.shape)}"
        )
