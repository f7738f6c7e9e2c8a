"""What steps on a GPU hold beside weights and cache: between layers, in attention, while sampling.

Each function follows from sizes alone what the engine's GPU path makes (`engine.layers`,
`engine.attention`, `engine.sampling`), and tests count on the meta device that it makes no more. A
CPU's steps are `loaders.memory.device`'s, which adds all of this up.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from loaders.checkpoint.shape import KV_TYPES

if TYPE_CHECKING:
    from loaders.checkpoint.shape import ModelShape

NUMBER = 2  # bytes of an activation: float16 or bfloat16
# Of each token that comes in: its id, its position, its place in the cache, its sequence.
INPUT_BYTES = 4 * 8
# While tokens are picked, for each row and token of the vocabulary: logits in the model's type and
# in float32, and with every setting in use sums of whole numbers in 64 bits (a greedy row 6, a
# drawn one 24, with top_k and top_p 46). Counted on the meta device, 2026-11.
SAMPLING_BYTES = 66
# The same with what is recorded before any request: greedy steps, and those with top_k and top_p.
START_SAMPLING_BYTES = 46
# Kept for each slot and token, once a request asks: bias, penalties' counts, ends, the prompt's.
SLOT_BYTES = 10
# Rows of the recorded decode steps, of which each does for fewer, too; more rows run as they come.
GRAPH_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 224, 256)
# Launches that a recorded step holds: of each layer, and of embedding, head and sampling. Beyond 64
# rows products are of dequantised pieces and a layer has more: 22 of 7B, 60 of 70B.
_LAYER_LAUNCHES, _OTHER_LAUNCHES = 10, 120
# What the driver keeps of each launch of a graph. Not measured: other servers' graphs of such
# models took 10 to 30 KB a launch, their pool included.
GRAPH_LAUNCH_BYTES = 16 * 1024
# Of each shape the greedy step and one that draws. Others are recorded when they were wanted often,
# a few dozen of all shapes at most and while there is memory: they are not counted.
PLANS_A_SHAPE = 2

# Of what `engine.attention.prompt` gathers of several chunks at a time.
MAX_PREFIX_BYTES = 256 * 2**20
# Of it as much as `engine.attention.kv_cache` reads at a time where it keeps another type.
MAX_WIDENED_BYTES = 32 * 2**20

# How attention of decode steps shares out its work, as `engine.kernels.paged_decode` does.
_PROCESSORS = 132  # of an H100 or H200; fewer make fewer splits
_PROGRAMS_A_PROCESSOR, _MAX_SPLITS, _MIN_TOKENS_A_SPLIT = 4, 32, 64
_MIN_TILE_HEADS, _MAX_TILE_HEADS = 16, 32


def layer_bytes(shape: ModelShape, tokens: int, sampled: int) -> int:
    """What lies between the layers of a step of so many tokens, of which some are sampled from.

    The largest of three. All hold the residual and what the layer before adds to it. Attention:
    queries, keys and values, queries rotated, and what was attended. The other half of a layer:
    what was attended, normed, gate and up, their product, and what comes of it. The same of the
    last layer, for the sampled rows alone, which have a residual of their own.
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = tokens * (2 * hidden + 3 * queries + 2 * keys)
    product = tokens * (4 * hidden + queries + 3 * inner)
    last = tokens * 2 * hidden + sampled * (3 * hidden + queries + 3 * inner)
    return NUMBER * max(attention, product, last) + INPUT_BYTES * tokens


def prefix_bytes(shape: ModelShape, context: int, users: int) -> int:
    """What one layer's keys and values take that chunks read, gathered side by side.

    Chunks are gathered together up to a bound; a single one may need more.
    """
    longest = NUMBER * context * 2 * shape.num_kv_heads * shape.head_dim
    return max(longest, min(MAX_PREFIX_BYTES, users * longest))


def widening_bytes(shape: ModelShape, prefix: int, kv_dtype: str | None) -> int:
    """What is read of a gathered prefix as it is kept, before it is attention's numbers.

    kv_dtype: what keys and values are kept in; None is what attention computes in.
    """
    if kv_dtype is None:
        return 0
    number, scale = KV_TYPES[kv_dtype]
    heads = min(prefix, MAX_WIDENED_BYTES) // (NUMBER * shape.head_dim)
    return heads * (number * shape.head_dim + (scale and scale + NUMBER))


def rotation_bytes(shape: ModelShape, context: int) -> int:
    """What the table of rotations takes."""
    return NUMBER * 2 * context * shape.head_dim


def sampling_bytes(shape: ModelShape, rows: int) -> int:
    """What picking the tokens of so many rows takes, logits included."""
    return SAMPLING_BYTES * rows * shape.vocab_size


def slot_bytes(shape: ModelShape, max_num_seqs: int) -> int:
    """What sampling keeps of every slot, if all of it is asked for; one slot is nobody's."""
    return SLOT_BYTES * (max_num_seqs + 1) * shape.vocab_size


def split_bytes(shape: ModelShape, rows: int, context: int, processors: int = _PROCESSORS) -> int:
    """What the parts of split attention take on the way, float32, of one layer's decode step."""
    group = -(-shape.num_heads // shape.num_kv_heads)
    tile = 1 if group == 1 else min(max(_power_of_2(group), _MIN_TILE_HEADS), _MAX_TILE_HEADS)
    num_tiles = rows * shape.num_kv_heads * -(-group // tile)
    wanted = -(-_PROGRAMS_A_PROCESSOR * processors // num_tiles)
    splits = max(1, min(wanted, _MAX_SPLITS, -(-context // _MIN_TOKENS_A_SPLIT)))
    parts = 0 if splits == 1 else rows * shape.num_heads * splits
    return 4 * parts * (shape.head_dim + 2)


def graph_rows(max_num_seqs: int) -> tuple[int, ...]:
    """List the rows of the decode steps that are recorded, smallest first."""
    return GRAPH_ROWS[: bisect_left(GRAPH_ROWS, max_num_seqs) + 1]


def pool_bytes(
    shape: ModelShape,
    max_num_seqs: int,
    context: int,
    *,
    has_logits: bool = True,
    sampling_bytes: int = SAMPLING_BYTES,
) -> int:
    """What the graphs' own memory takes: the largest step's, which all others use again.

    sampling_bytes: for each row and token of the vocabulary, of the plans that are recorded.
    """
    rows = graph_rows(max_num_seqs)
    split = max(split_bytes(shape, count, context) for count in rows)
    sampling = sampling_bytes * rows[-1] * shape.vocab_size if has_logits else 0
    return max(layer_bytes(shape, rows[-1], rows[-1]) + split, sampling)


def launch_bytes(num_layers: int, max_num_seqs: int) -> int:
    """What the driver keeps of the graphs themselves."""
    launches = num_layers * _LAYER_LAUNCHES + _OTHER_LAUNCHES
    return len(graph_rows(max_num_seqs)) * PLANS_A_SHAPE * launches * GRAPH_LAUNCH_BYTES


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
