"""Where prompts are cut, so that a token is computed alike whether its beginning was cached or not.

A product of few rows and one of many take different ways through the kernels, and their sums round
differently. A prompt of which a part is found in the prefix cache leaves fewer rows; were the way
chosen by their number, the same question would be answered otherwise the second time. So it is
chosen by position, and prefixes are shared where the ways meet:

    | piece | piece | piece | end |      piece: a whole block, computed by the way of many rows
    0      16      32      48   51       end: what fills no block, by the way of few, as decodes are

What an answer's tokens left in the cache was computed one by one and is nobody else's prefix.
"""

from __future__ import annotations

from dataclasses import replace
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
    """Part what goes the way of many rows from what goes the way of few; either may be empty.

    Only decodes and chunks; what else a batch says belongs to the whole.
    """
    pieces: list[ScheduledChunk] = []
    rest: list[ScheduledChunk] = []
    for chunk in batch.chunks:
        cut = _cut_of(chunk, block_size)
        if cut == chunk.stop:
            pieces.append(chunk)
        elif cut == chunk.start or chunk.prompt_targets is not None:
            rest.append(chunk)
        else:
            num_first = cut - chunk.start
            first, last = chunk.token_ids[:num_first], chunk.token_ids[num_first:]
            pieces.append(replace(chunk, token_ids=first, num_samples=0, extras=()))
            rest.append(replace(chunk, start=cut, token_ids=last))
    return ScheduledBatch(Decodes(), tuple(pieces)), ScheduledBatch(batch.decodes, tuple(rest))


def _cut_of(chunk: ScheduledChunk, block_size: int) -> int:
    """Return where a chunk's pieces end; at its start where it has none."""
    # One that begins elsewhere was cut short for want of room; a draft goes as decodes do.
    if chunk.start % block_size or chunk.num_drafts:
        return chunk.start
    return pieces_end(chunk.stop, block_size)
