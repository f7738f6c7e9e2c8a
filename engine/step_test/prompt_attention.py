"""Flash attention of prompts against PyTorch's own attention in float32, on random numbers.

Made where flash attention would be taken, and nowhere else: what it is left out for is always
there. The chunks are such as steps have: ones that go on behind what is cached, and a new prompt.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from engine.attention import prompt
from engine.step_test.step_check import Part, StepCheck, compare, off_by, unit_roundoff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.attention.prompt import ChunkGroup
    from engine.step_test.step_sizes import StepSizes

# Rows and keys of each chunk. 130 keys are more than a tile of any flash attention, in either way;
# an odd number of rows, and a single one, leave tiles in part empty.
CHUNKS = ((33, 130), (1, 45), (20, 20))


def takes_flash(sizes: StepSizes) -> bool:
    """Whether prompts of a model are attended to by flash attention."""
    return prompt.takes_flash(sizes.device, sizes.dtype, sizes.head_dim)


@torch.inference_mode()
def check_flash(sizes: StepSizes) -> Iterator[StepCheck]:
    """Compare with every window that layers have; call it where flash attention is taken."""
    generator = torch.Generator(sizes.device).manual_seed(0)
    group = _group(sizes)

    def random(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=generator, device=sizes.device)
        return drawn.to(sizes.dtype)

    query = random(sum(group.num_rows), sizes.num_heads, sizes.head_dim)
    seen = random(sum(group.num_keys), 2, sizes.num_kv_heads, sizes.head_dim)
    worst, scale = 0.0, sizes.head_dim**-0.5
    for window in sizes.windows:
        found = prompt.attend_by_flash(query, seen, group, scale=scale, window=window)
        wanted = prompt.attend_by_sdpa(
            query.float(), seen.float(), group, scale=scale, window=window
        )
        worst = max(worst, compare(found, wanted, unit_roundoff(sizes.dtype)))
    yield StepCheck("flash attention", Part.FLASH, worst <= 1, off_by(worst), worst)


def _group(sizes: StepSizes) -> ChunkGroup:
    longest = sizes.max_model_len
    num_rows = tuple(min(rows, longest) for rows, _ in CHUNKS)
    num_keys = tuple(min(keys, longest) for _, keys in CHUNKS)
    return prompt.ChunkGroup(
        rows=slice(0, sum(num_rows)),
        slots=torch.arange(sum(num_keys), device=sizes.device),
        row_ends=_ends(num_rows, sizes.device),
        key_ends=_ends(num_keys, sizes.device),
        num_rows=num_rows,
        num_keys=num_keys,
    )


def _ends(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
