"""Attention of one token a row to its own sequence's blocks.

A sequence is divided over several programs (split KV), each of which leaves a part of the result
with its maximum and its sum; `paged_decode_merge` puts the parts together, in a fixed order. How
many programs there are follows from shapes alone, so that a CUDA graph holds it; each row divides
its own length by that number. Where one program a head does, it stores the result, and there is
one launch.

    row's tokens | before the window | split 0     | split 1     | split 2  |
                 | never read        | `per_split` | `per_split` | the rest |

Query heads that share a KV head are rows of one tile, so that its keys and values are read once.
A single query head would be one row in sixteen of such a tile, its products waiting for shared
memory; it is multiplied without `dot`, and every token of the tile keeps a softmax of its own up
to the end, so that no warp waits for another on the way.

What a row does not see is not loaded, so whatever lies there reaches nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from engine.kernels.compile_case import CompileCase
from engine.kernels.launches import count
from engine.kernels.optional_triton import tl, triton

if TYPE_CHECKING:
    from torch import Tensor

    from engine.kernels.step_kernels import DecodeRows, KVLayer, Order

# What the reference reads at once.
MAX_REFERENCE_BYTES = 64 * 2**20

_LOG2_E = 1.4426950408889634
# Query heads in a tile; `dot` takes no fewer, and registers hold no more.
_MIN_TILE_HEADS, _MAX_TILE_HEADS = 16, 32
# Programs wanted for each multiprocessor: reads enough under way, and short rows that end early
# leave their places to the splits of long ones. With more splits the merge would be the longer
# part, and spilled (64 of 128 columns with a window, Triton 3.6 and 3.7).
_PROGRAMS_A_PROCESSOR = 4
_MAX_SPLITS = 32
_MIN_TOKENS_A_SPLIT = 64
# For what has none: the interpreter.
_PROCESSORS_OF_A_CPU = 8


def reference(
    query: Tensor,
    layer: KVLayer,
    rows: DecodeRows,
    *,
    scale: float,
    window: int | None,
    order: Order | None,
) -> Tensor:
    """Do the same in plain PyTorch; arguments as in `StepKernels.decode_attention`.

    Reads whole tables, piece by piece: its time follows the longest sequence there may be.
    """
    num_rows, num_heads, head_dim = query.shape
    kv_heads = layer.values.shape[2]
    queries = query.float().reshape(num_rows, kv_heads, -1, head_dim) * scale
    num_tokens = (rows.positions + 1).unsqueeze(1)
    tables = rows.tables.index_select(0, rows.slots)
    block_bytes = rows.block_size * 2 * kv_heads * head_dim * torch.float32.itemsize
    step = max(1, MAX_REFERENCE_BYTES // (num_rows * block_bytes))

    top = queries.new_empty((*queries.shape[:3], 1)).fill_(float("-inf"))
    total, attended = torch.zeros_like(top), torch.zeros_like(queries)
    for first in range(0, tables.shape[1], step):
        places, tokens = _tokens_of(tables[:, first : first + step], first, rows.block_size)
        is_seen = tokens < num_tokens
        if window is not None:
            is_seen &= tokens >= num_tokens - window
        keys, values = _read(layer, places, is_seen)
        scores = torch.einsum("rkgd,rtkd->rkgt", queries, keys)
        scores = scores.masked_fill(~is_seen[:, None, None], float("-inf"))
        new_top = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
        at = new_top.masked_fill(new_top == float("-inf"), 0.0)  # of a row that has seen none yet
        weights, kept = torch.exp(scores - at), torch.exp(top - at)
        total = total * kept + weights.sum(dim=-1, keepdim=True)
        attended = attended * kept + torch.einsum("rkgt,rtkd->rkgd", weights, values)
        top = new_top
    result = (attended / total).to(query.dtype).reshape(num_rows, num_heads * head_dim)
    return result if order is None else result.index_select(1, order.gather)


def _tokens_of(blocks: Tensor, first: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the places in the cache and the positions of blocks' tokens, [rows, tokens] each."""
    # Counted on the device: a graph takes no numbers from the host.
    within = blocks.new_empty(block_size).fill_(1).cumsum(0) - 1
    index = torch.ones_like(blocks).cumsum(1) - 1 + first
    places = blocks.unsqueeze(-1) * block_size + within
    tokens = index.unsqueeze(-1) * block_size + within
    return places.flatten(1), tokens.flatten(1)


def _read(layer: KVLayer, places: Tensor, is_seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 keys and values, [rows, tokens, kv_heads, head_dim]; 0 where none is seen."""
    flat = places.flatten()
    if layer.scales is None:
        found = layer.values.index_select(0, flat).float()
    else:  # copying by index knows no float8
        codes = layer.values.view(torch.uint8).index_select(0, flat).view(layer.values.dtype)
        found = codes.float() * layer.scales.index_select(0, flat).float()
    found = found.view(*places.shape, *layer.values.shape[1:])
    keys, values = found.masked_fill(~is_seen[..., None, None, None], 0.0).unbind(2)
    return keys, values


def num_splits(num_rows: int, num_tiles: int, max_tokens: int, processors: int) -> int:
    """How many programs share a row's tokens.

    num_tiles: tiles of query heads a row has; max_tokens: that its table has room for.
    """
    wanted = -(-_PROGRAMS_A_PROCESSOR * processors // (num_rows * num_tiles))
    return max(1, min(wanted, _MAX_SPLITS, -(-max_tokens // _MIN_TOKENS_A_SPLIT)))


def split_buffer_bytes(
    num_rows: int, num_heads: int, kv_heads: int, head_dim: int, max_tokens: int, processors: int
) -> int:
    """How much memory one call's parts take on the way; none where nothing is split."""
    num_tiles = kv_heads * -(-num_heads // kv_heads // _tile_heads(num_heads // kv_heads))
    splits = num_splits(num_rows, num_tiles, max_tokens, processors)
    parts = 0 if splits == 1 else num_rows * num_heads * splits
    return parts * (head_dim + 2) * torch.float32.itemsize


def decode_attention(
    query: Tensor,
    layer: KVLayer,
    rows: DecodeRows,
    *,
    scale: float,
    window: int | None,
    order: Order | None,
) -> Tensor:
    """Launch the kernels; arguments as in `StepKernels.decode_attention`."""
    num_rows, num_heads, head_dim = query.shape
    kept = layer.values
    sizes = rows.block_size, query.itemsize, kept.itemsize
    shape = _Shape(num_heads, kept.shape[2], head_dim, *sizes)
    processors, has_float8 = _device_facts(query.device)
    max_tokens = rows.tables.shape[1] * rows.block_size
    splits = num_splits(num_rows, shape.num_tiles, max_tokens, processors)
    query = query if query.stride(2) == 1 else query.contiguous()
    output = query.new_empty(num_rows, num_heads * head_dim)
    parts = sums = None
    if splits > 1:
        parts = query.new_empty((num_rows, num_heads, splits, head_dim), dtype=torch.float32)
        sums = query.new_empty((num_rows, num_heads, splits, 2), dtype=torch.float32)
    scatter = None if order is None else order.scatter
    count("paged_decode")
    paged_decode[(num_rows, shape.num_tiles, splits)](
        query,
        kept if layer.scales is None else kept.view(torch.uint8),
        layer.scales,
        rows.slots,
        rows.positions,
        rows.tables,
        scatter,
        output,
        parts,
        sums,
        query.stride(0),
        query.stride(1),
        rows.tables.stride(0),
        scale * _LOG2_E,
        window,
        **shape.constants(has_float8=has_float8),
        **shape.options,
    )
    if splits > 1:
        count("paged_decode_merge")
        paged_decode_merge[(num_rows, num_heads)](
            parts,
            sums,
            rows.positions,
            scatter,
            output,
            splits,
            window,
            **shape.merge_constants(splits),
            **_MERGE_OPTIONS,
        )
    return output


@lru_cache
def _device_facts(device: torch.device) -> tuple[int, bool]:
    """Return how many multiprocessors a device has, and whether Triton reads float8 there."""
    if device.type != "cuda":
        return _PROCESSORS_OF_A_CPU, False
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, (found.major, found.minor) >= (8, 9)


def _tile_heads(group: int) -> int:
    """How many of the query heads that share a KV head a tile has room for."""
    if group == 1:
        return 1
    return min(max(_power_of_2(group), _MIN_TILE_HEADS), _MAX_TILE_HEADS)


def _power_of_2(number: int) -> int:
    """Return the next power of two, which tiles must be."""
    return 1 << (number - 1).bit_length()


class _Shape(NamedTuple):
    """What the kernels' constants follow from."""

    num_heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    query_bytes: int  # a number
    kept_bytes: int

    @property
    def group(self) -> int:
        """How many query heads share a KV head."""
        return self.num_heads // self.kv_heads

    @property
    def num_tiles(self) -> int:
        """How many tiles of query heads a row has."""
        return self.kv_heads * -(-self.group // _tile_heads(self.group))

    @property
    def tile_tokens(self) -> int:
        """How many tokens a program reads at once."""
        width = _power_of_2(self.head_dim)
        if self.group == 1:  # each has sums of its own, in registers
            return 4096 // width
        if self.query_bytes == 4:  # 32 tokens of 128 took more registers than there are
            return 16
        return max(16, min(64, 8192 // width, 16384 // (width * self.kept_bytes)))

    @property
    def options(self) -> dict[str, int]:
        # With 4 warps a single head of 256 spilled 8 bytes on sm_100.
        is_wide = self.group == 1 and self.head_dim > 128
        return {"num_warps": 8 if is_wide else 4, "num_stages": 2}

    def constants(self, *, has_float8: bool) -> dict[str, Any]:
        return {
            "group": self.group,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "block_size": self.block_size,
            "tile_heads": _tile_heads(self.group),
            "tile_width": _power_of_2(self.head_dim),
            "tile_tokens": self.tile_tokens,
            "has_float8": has_float8,
            # The interpreter multiplies bfloat16's bit patterns.
            "widen": triton.knobs.runtime.interpret,
        }

    def merge_constants(self, splits: int) -> dict[str, Any]:
        return {
            "head_dim": self.head_dim,
            "tile_width": _power_of_2(self.head_dim),
            "tile_tokens": self.tile_tokens,
            "tile_splits": _power_of_2(splits),
        }


_MERGE_OPTIONS = {"num_warps": 4, "num_stages": 1}


# Slots and positions are slices of what a step sends, which begin anywhere: each other alignment
# would be compiled anew, while requests wait. So would numbers of splits, which follow the rows.
@triton.jit(do_not_specialize_on_alignment=["slots", "positions"])
def paged_decode(
    query: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    slots: tl.tensor,
    positions: tl.tensor,
    tables: tl.tensor,
    scatter: tl.tensor,
    output: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    table_row: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    group: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile_heads: tl.constexpr,
    tile_width: tl.constexpr,
    tile_tokens: tl.constexpr,
    has_float8: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """Attend with one tile of a row's query heads to one split of its tokens."""
    row = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (group + tile_heads - 1) // tile_heads
    kv_head = tl.program_id(1) // tiles
    split, splits = tl.program_id(2), tl.num_programs(2)
    start, stop = _share(positions + row, window, split, splits, tile_tokens)
    if start < stop:
        in_group = tl.program_id(1) % tiles * tile_heads + tl.arange(0, tile_heads)
        heads = kv_head * group + in_group
        columns = tl.arange(0, tile_width)
        inside = (in_group < group)[:, None] & (columns < head_dim)[None, :]
        at = row * query_row + heads[:, None].to(tl.int64) * query_head + columns[None, :]
        asked = tl.load(query + at, mask=inside, other=0.0)
        table = tables + tl.load(slots + row) * table_row
        if group == 1:
            attended, top, total = _attend_alone(
                asked, values, scales, table, start, stop, scale, kv_head,
                kv_heads, head_dim, block_size, tile_tokens, has_float8,
            )  # fmt: skip
        else:
            attended, top, total = _attend_together(
                asked.to(tl.float32) if widen else asked, values, scales, table, start, stop, scale,
                kv_head, kv_heads, head_dim, block_size, tile_tokens, has_float8,
            )  # fmt: skip
        if parts is None:
            at_row = output + row * (group * kv_heads * head_dim)
            places = heads[:, None] * head_dim + columns[None, :]
            _store(at_row, scatter, places, inside, attended / total[:, None])
        else:
            part = (row * (group * kv_heads) + heads) * splits + split
            at_part = parts + part[:, None] * head_dim + columns[None, :]
            tl.store(at_part, attended, mask=inside)
            tl.store(sums + part * 2, top, mask=in_group < group)
            tl.store(sums + part * 2 + 1, total, mask=in_group < group)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["positions"])
def paged_decode_merge(
    parts: tl.tensor,
    sums: tl.tensor,
    positions: tl.tensor,
    scatter: tl.tensor,
    output: tl.tensor,
    splits: tl.tensor,
    window: tl.tensor,
    head_dim: tl.constexpr,
    tile_width: tl.constexpr,
    tile_tokens: tl.constexpr,
    tile_splits: tl.constexpr,
) -> None:
    """Put the parts of one query head together."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    split = tl.arange(0, tile_splits)
    start, stop = _share(positions + row, window, split, splits, tile_tokens)
    is_used = start < stop  # the others have left nothing
    columns = tl.arange(0, tile_width)
    inside = columns < head_dim

    part = (row * num_heads + head) * splits + split
    tops = tl.load(sums + part * 2, mask=is_used, other=float("-inf"))
    totals = tl.load(sums + part * 2 + 1, mask=is_used, other=0.0)
    weights = tl.exp2(tops - tl.max(tops, axis=0))
    at = parts + part[:, None] * head_dim + columns[None, :]
    attended = tl.load(at, mask=is_used[:, None] & inside[None, :], other=0.0)
    result = tl.sum(attended * weights[:, None], axis=0) / tl.sum(totals * weights, axis=0)

    at_row = output + row * (num_heads * head_dim)
    _store(at_row, scatter, head * head_dim + columns, inside, result)


@triton.jit
def _share(
    position: tl.tensor,
    window: tl.tensor,
    split: tl.tensor,
    splits: tl.tensor,
    tile_tokens: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return where a split of a row's tokens starts and stops; late ones may have none."""
    end = tl.load(position).to(tl.int32) + 1
    first = end * 0
    if window is not None:
        first = tl.maximum(end - window, 0)
    per_split = tl.cdiv(tl.cdiv(end - first, splits), tile_tokens) * tile_tokens
    start = first + split * per_split
    return start, tl.minimum(start + per_split, end)


@triton.jit
def _store(
    row: tl.tensor, scatter: tl.tensor, columns: tl.tensor, inside: tl.tensor, result: tl.tensor
) -> None:
    """Store a row's columns where the order wants them; row: points to its first."""
    if scatter is not None:
        columns = tl.load(scatter + columns, mask=inside, other=0)
    tl.store(row + columns, result.to(row.dtype.element_ty), mask=inside)


@triton.jit
def _attend_alone(
    asked: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    scale: tl.tensor,
    kv_head: tl.tensor,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile_tokens: tl.constexpr,
    has_float8: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Attend with one head; every place in the tile of tokens keeps a softmax of its own."""
    asked = asked.to(tl.float32) * scale
    tops = tl.full((tile_tokens,), float("-inf"), tl.float32)
    totals = tl.zeros((tile_tokens,), tl.float32)
    attended = tl.zeros((tile_tokens, asked.shape[1]), tl.float32)
    for at in range(start, stop, tile_tokens):
        tokens = at + tl.arange(0, tile_tokens)
        is_seen = tokens < stop
        place = _place(table, tokens, is_seen, kv_head, kv_heads, block_size)
        keys = _load(values, place, is_seen, head_dim, asked.shape[1], scales, has_float8)
        scores = tl.sum(keys.to(tl.float32) * asked, axis=1)
        if scales is not None:
            scores *= tl.load(scales + place, mask=is_seen, other=0.0).to(tl.float32)
        scores = tl.where(is_seen, scores, float("-inf"))
        new_tops = tl.maximum(tops, scores)
        base = tl.where(new_tops == float("-inf"), 0.0, new_tops)  # of a place that saw none yet
        kept, weights = tl.exp2(tops - base), tl.exp2(scores - base)
        totals = totals * kept + weights
        tops = new_tops
        place += kv_heads
        if scales is not None:
            weights *= tl.load(scales + place, mask=is_seen, other=0.0).to(tl.float32)
        found = _load(values, place, is_seen, head_dim, asked.shape[1], scales, has_float8)
        attended = attended * kept[:, None] + found.to(tl.float32) * weights[:, None]
    top = tl.max(tops, axis=0)
    weights = tl.exp2(tops - top)
    total = tl.sum(totals * weights, axis=0)
    result = tl.sum(attended * weights[:, None], axis=0)
    one = tl.zeros((1,), tl.float32)
    return result[None, :], one + top, one + total


@triton.jit
def _attend_together(
    asked: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    scale: tl.tensor,
    kv_head: tl.tensor,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile_tokens: tl.constexpr,
    has_float8: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Attend with the heads of one tile, which read the same keys and values."""
    tops = tl.full((asked.shape[0],), float("-inf"), tl.float32)
    totals = tl.zeros((asked.shape[0],), tl.float32)
    attended = tl.zeros((asked.shape[0], asked.shape[1]), tl.float32)
    for at in range(start, stop, tile_tokens):
        tokens = at + tl.arange(0, tile_tokens)
        is_seen = tokens < stop
        place = _place(table, tokens, is_seen, kv_head, kv_heads, block_size)
        keys = _load(values, place, is_seen, head_dim, asked.shape[1], scales, has_float8)
        scores = tl.dot(asked, tl.trans(keys.to(asked.dtype)), input_precision="ieee") * scale
        if scales is not None:
            scores *= tl.load(scales + place, mask=is_seen, other=0.0).to(tl.float32)[None, :]
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_tops = tl.maximum(tops, tl.max(scores, axis=1))
        kept = tl.exp2(tops - new_tops)
        weights = tl.exp2(scores - new_tops[:, None])
        totals = totals * kept + tl.sum(weights, axis=1)
        tops = new_tops
        attended *= kept[:, None]
        place += kv_heads
        found = _load(values, place, is_seen, head_dim, asked.shape[1], scales, has_float8)
        found = found.to(asked.dtype)
        if scales is not None:
            # Beside the tile's largest, so that half precision holds what is left of weights.
            wide = tl.load(scales + place, mask=is_seen, other=0.0).to(tl.float32)
            largest = tl.maximum(tl.max(wide, axis=0), 1e-30)
            weights = (weights * (wide / largest)[None, :]).to(asked.dtype)
            attended += tl.dot(weights, found, input_precision="ieee") * largest
        else:
            attended += tl.dot(weights.to(asked.dtype), found, input_precision="ieee")
    return attended, tops, totals


@triton.jit
def _place(
    table: tl.tensor,
    tokens: tl.tensor,
    is_seen: tl.tensor,
    kv_head: tl.tensor,
    kv_heads: tl.constexpr,
    block_size: tl.constexpr,
) -> tl.tensor:
    """Return which of the cache's heads hold the tokens' keys; values lie `kv_heads` further on.

    64 bits: times the head's width this passes 2^31 from 2 GB of one layer's keys and values on.
    """
    block = tl.load(table + tokens // block_size, mask=is_seen, other=0).to(tl.int64)
    return (block * block_size + tokens % block_size) * (2 * kv_heads) + kv_head


@triton.jit
def _load(
    values: tl.tensor,
    place: tl.tensor,
    is_seen: tl.tensor,
    head_dim: tl.constexpr,
    tile_width: tl.constexpr,
    scales: tl.tensor,
    has_float8: tl.constexpr,
) -> tl.tensor:
    """Load a tile of the cache's heads, [tokens, width]; 0 outside. fp8 comes without its scale."""
    columns = tl.arange(0, tile_width)
    inside = is_seen[:, None] & (columns < head_dim)[None, :]
    found = tl.load(values + place[:, None] * head_dim + columns[None, :], mask=inside, other=0)
    if scales is not None:
        found = found.to(tl.float8e4nv, bitcast=True) if has_float8 else _from_e4m3(found)
    return found


@triton.jit
def _from_e4m3(codes: tl.tensor) -> tl.tensor:
    """Decode bytes by hand, for GPUs on which Triton knows no float8.

    e4m3's bits, moved to where float16 has its own, are the number over 2^8, subnormal or not; the
    exponents' biases differ by 8. Only NaN has other bits.
    """
    magnitude = (codes & 0x7F).to(tl.uint16)
    bits = (magnitude << 7) | ((codes & 0x80).to(tl.uint16) << 8)
    number = bits.to(tl.float16, bitcast=True) * 256.0
    return tl.where(magnitude == 0x7F, float("nan"), number)


class _Use(NamedTuple):
    """A use of the kernels that stands for others like it."""

    heads: tuple[int, int]  # of queries, of keys
    head_dim: int
    dtype: str = "fp16"
    kept_as: str = "fp16"  # "u8": fp8
    has_float8: bool = False
    has_window: bool = False
    has_order: bool = True
    is_split: bool = True
    is_merged: bool = False  # whether merging is a case, too

    @property
    def shape(self) -> _Shape:
        sizes = {"fp32": 4, "fp16": 2, "bf16": 2, "u8": 1}
        return _Shape(*self.heads, self.head_dim, 16, sizes[self.dtype], sizes[self.kept_as])

    @property
    def name(self) -> str:
        words = [f"{self.heads[0]}/{self.heads[1]}x{self.head_dim} {self.dtype}"]
        if self.kept_as != self.dtype:
            words.append({"u8": "fp8 bytes"}.get(self.kept_as, self.kept_as))
        if self.has_float8:
            words[-1] = "fp8"
        words += ["window"] * self.has_window + ["permuted"] * self.has_order
        words += ["split"] * self.is_split
        return " ".join(words)


_USES = (
    _Use((32, 32), 128, is_merged=True),
    _Use((32, 32), 128, is_split=False),
    _Use((40, 40), 128, "bf16", "bf16", has_window=True),
    _Use((32, 32), 128, kept_as="u8"),
    _Use((32, 32), 128, kept_as="u8", has_float8=True),
    _Use((64, 8), 128, "bf16", "bf16", has_order=False, is_split=False),
    _Use((32, 8), 128, "bf16", "bf16", has_window=True, is_merged=True),
    _Use((32, 8), 128, kept_as="u8"),
    _Use((32, 8), 128, "bf16", kept_as="u8", has_float8=True),
    _Use((9, 3), 64),
    _Use((8, 1), 96),
    _Use((32, 1), 128),
    _Use((8, 4), 256, "bf16", "bf16"),
    _Use((8, 4), 256, "fp16", "u8"),
    _Use((16, 16), 256, "bf16", "bf16", is_merged=True),
    _Use((32, 8), 128, "fp32", "fp32"),
)


def compile_cases() -> list[CompileCase]:
    """Return uses of the kernels that stand for all."""
    attending = [_attending(use) for use in _USES]
    merging = [_merging(use) for use in _USES if use.is_merged]
    return attending + merging


def _attending(use: _Use) -> CompileCase:
    arguments = {
        "query": f"*{use.dtype}",
        "values": f"*{use.kept_as}",
        "scales": "*fp16" if use.kept_as == "u8" else None,
        "slots": "*i64",
        "positions": "*i64",
        "tables": "*i64",
        "scatter": "*i32" if use.has_order else None,
        "output": f"*{use.dtype}",
        "parts": "*fp32" if use.is_split else None,
        "sums": "*fp32" if use.is_split else None,
        "query_row": "i32:16",
        "query_head": "i32:16",
        "table_row": "i32",
        "scale": "fp32",
        "window": "i32:16" if use.has_window else None,
        **use.shape.constants(has_float8=use.has_float8),
    }
    least = 89 if use.has_float8 else 80
    return _case(f"paged_decode {use.name}", paged_decode, arguments, use.shape.options, least)


def _merging(use: _Use) -> CompileCase:
    arguments = {
        "parts": "*fp32",
        "sums": "*fp32",
        "positions": "*i64",
        "scatter": "*i32" if use.has_order else None,
        "output": f"*{use.dtype}",
        "splits": "i32",
        "window": "i32:16" if use.has_window else None,
        **use.shape.merge_constants(_MAX_SPLITS),
    }
    return _case(f"paged_decode_merge {use.name}", paged_decode_merge, arguments, _MERGE_OPTIONS)


def _case(
    name: str, kernel: Any, arguments: dict[str, Any], options: dict[str, int], least: int = 80
) -> CompileCase:
    """Divide arguments into types, which are words, and constants."""
    signature, constants = {}, {}
    for argument, given in arguments.items():
        if isinstance(given, str):
            signature[argument] = given
        else:
            signature[argument] = "constexpr"
            constants[argument] = given
    return CompileCase(name, kernel, signature, constants, options, least)
