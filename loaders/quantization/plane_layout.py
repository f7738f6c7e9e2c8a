"""How the Triton kernels lay out a weight and share out its products: sizes alone, no tensors.

The kernels (`loaders.model.kernels.triton`) pack and launch by it, a plan (`loaders.memory.layers`)
counts by it. Without PyTorch, since a plan does without.
"""

from __future__ import annotations

from dataclasses import dataclass

OUTPUT_MULTIPLE = 64  # outputs of one tile
# Widths of the fields that a code is cut into, lowest first; 7 bits take a byte.
FIELD_WIDTHS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (8,), 8: (8,)}
_SLICES = (64, 32, 16)  # inputs that meet one field of bytes; fewer than 16 fill no tensor core
_MAX_BLOCK = 128  # inputs a block, so that a group of 128 is multiplied by its scale once

# More rows are multiplied by dequantised pieces: from about 50 on, arithmetic takes longer than
# reading the weight.
MAX_FEW_ROWS = 64
# Rows of a tile. One of 64 takes 250 registers on sm_80 (Triton 3.7.1), which leaves one program a
# multiprocessor: so many rows are two tiles of 32, whose weights come from the second-level cache.
ROW_TILES = (16, 32)
# Of an H100 or H200; what is taken where there is no GPU to ask.
USUAL_MULTIPROCESSORS = 132
# Three programs of four warps each hide each other's waiting; each needs two blocks of inputs, or
# it would wait for its first alone; the last one adds up at most eight parts.
_PROGRAMS_EACH = 3
_MIN_SPLIT_BLOCKS = 2
_MAX_SPLITS = 8
# A piece of a dequantised weight: large enough to keep cuBLAS busy (1 170 outputs of 28 672 inputs
# in 16 bits, the widest layer of a 70B model), small beside a GPU's memory.
PIECE_BYTES = 64 * 2**20
WIDEST_ITEM = 4  # bytes of a float32: rows of any dtype find room for their pieces


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """How codes lie in planes of bytes: `loaders.model.kernels.triton.pack`."""

    widths: tuple[int, ...]  # of the fields that a code is cut into, lowest first
    slice_inputs: int  # a run of inputs that meets one field of bytes

    @classmethod
    def of(cls, bits: int, group_size: int, in_features: int) -> PlaneLayout:
        """Take the longest slice that no border of a group cuts; if there is none, any."""
        widths = FIELD_WIDTHS[bits]
        fitting = [size for size in _SLICES if size * 8 // widths[-1] <= _MAX_BLOCK]
        if group_size == -1 or group_size >= in_features:
            return cls(widths, fitting[0])
        whole = (size for size in fitting if group_size % size == 0)
        return cls(widths, next(whole, fitting[0]))

    @property
    def num_slices(self) -> int:
        """Slices of a block: fields in a byte of the narrowest plane."""
        return 8 // self.widths[-1]

    @property
    def block_inputs(self) -> int:
        """Inputs of a block."""
        return self.slice_inputs * self.num_slices

    def num_blocks(self, in_features: int) -> int:
        """Blocks of a layer's inputs, the last one padded."""
        return -(-in_features // self.block_inputs)


def padded_outputs(out_features: int) -> int:
    """Outputs with those that fill the last tile."""
    return -(-out_features // OUTPUT_MULTIPLE) * OUTPUT_MULTIPLE


@dataclass(frozen=True, slots=True)
class Split:
    """How the inputs of a product of few rows are shared among programs."""

    num_parts: int
    part_blocks: int  # blocks of each part; the last may have fewer

    @classmethod
    def of(cls, num_blocks: int, padded_out: int, num_multiprocessors: int) -> Split:
        """Give a GPU's multiprocessors enough to do, whatever the number of rows."""
        tiles = padded_out // OUTPUT_MULTIPLE
        wanted = -(-_PROGRAMS_EACH * num_multiprocessors // tiles)
        parts = max(1, min(wanted, _MAX_SPLITS, num_blocks // _MIN_SPLIT_BLOCKS))
        part_blocks = -(-num_blocks // parts)
        return cls(-(-num_blocks // part_blocks), part_blocks)

    def num_partials(self, padded_out: int) -> int:
        """Sums that are kept at most until they are added up."""
        return 0 if self.num_parts == 1 else self.num_parts * MAX_FEW_ROWS * padded_out


def num_locks(padded_out: int) -> int:
    """Tiles of outputs and rows whose parts are counted as they arrive."""
    return padded_out // OUTPUT_MULTIPLE * (MAX_FEW_ROWS // ROW_TILES[-1])


def piece_outputs(in_features: int, padded_out: int, item_bytes: int) -> int:
    """How many outputs are dequantised at a time: whole tiles."""
    tiles = PIECE_BYTES // (in_features * item_bytes * OUTPUT_MULTIPLE)
    return min(max(tiles, 1) * OUTPUT_MULTIPLE, padded_out)
