"""Where prompts are cut, so that a token is computed alike whether its beginning was cached or not.

A product of few rows and one of many take different ways through the kernels, and their sums round
differently. A prompt of which a part is found in the prefix cache leaves fewer rows; were the way
chosen by their number, the same question would be answered otherwise the second time. So all of a
prompt goes the way of many rows, however few are left, in pieces of a block; whole ones are shared:

    | piece | piece | piece | end |
    0      16      32      48   51

What an answer's tokens left in the cache was computed one by one and is nobody else's prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.scheduling.batch import Decodes, ScheduledBatch

if TYPE_CHECKING:
    from engine.scheduling.batch import ScheduledChunk
    from engine.scheduling.sequence import Sequence


def pieces_end(num_tokens: int, block_size: int) -> int:
    """Return where the pieces of so many tokens end."""
    return num_tokens - num_tokens % block_size


def chunk_stop(start: int, end: int, budget: int, block_size: int) -> int:
    """Return where a chunk of a prompt that ends at `end` stops: between pieces, or at the end.

    Where not even one piece fits, `start`.
    """
    stop = start + budget
    return end if stop >= end else max(start, pieces_end(stop, block_size))


def num_shared_blocks(sequence: Sequence, num_tokens: int, block_size: int) -> int:
    """Count the blocks, of a sequence's first tokens, that others may find or be found from."""
    return min(num_tokens, sequence.num_prompt_tokens) // block_size


def split(batch: ScheduledBatch, block_size: int) -> tuple[ScheduledBatch, ScheduledBatch]:
    """Part prompts, which go the way of many rows, from the rest; either may be empty.

    Only decodes and chunks; what else a batch says belongs to the whole.
    """
    if not batch.chunks:
        return ScheduledBatch(Decodes(), ()), batch
    prompts: list[ScheduledChunk] = []
    rest: list[ScheduledChunk] = []
    for chunk in batch.chunks:
        # One that begins elsewhere was cut short for want of room.
        is_prompt = not chunk.is_decode and chunk.start % block_size == 0
        (prompts if is_prompt else rest).append(chunk)
    return ScheduledBatch(Decodes(), tuple(prompts)), ScheduledBatch(batch.decodes, tuple(rest))
