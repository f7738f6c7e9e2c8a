"""Attention of chunks on a GPU: what they see is gathered out of the cache, all chunks at once.

    rows       | chunk 0: new ……… | chunk 1: new … |
    gathered   | chunk 0: cached … new ……… | chunk 1: cached ………… new … |

Each chunk's last row sees the last that was gathered for it, each row before it one token less.
PyTorch's flash attention takes chunks of any lengths in one launch; where it takes none of their
kind, each chunk goes through `scaled_dot_product_attention`, which is also what flash attention is
held to. Which way is told by facts about device and numbers, before anything is launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from engine.attention.paged import attend_onward
from engine.kernels.launches import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.attention.kv_cache import KVCache

# Bound of what one group gathers per layer; a single chunk may need more. A 7B model without
# grouped queries keeps 16 KiB a token and layer in half precision: 16 384 tokens.
MAX_PROMPT_BYTES = 256 * 2**20

_MAX_FLASH_HEAD_DIM = 256
# What is given by place, and by name: the same in PyTorch 2.11 and 2.13, which has more of them.
_GIVEN_BY_PLACE = (
    *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
    *("dropout_p", "is_causal", "return_debug_mask"),
)
_GIVEN_BY_NAME = frozenset({"scale", "window_size_left", "window_size_right"})
flash_forward = torch.ops.aten._flash_attention_forward.default


@dataclass(frozen=True, slots=True)
class ChunkGroup:
    """Neighbouring chunks of a step that are attended to at once."""

    rows: slice  # of the step
    slots: Tensor  # [keys of all] int64: where the cache holds what each chunk sees, in order
    row_ends: Tensor  # [chunks + 1] int32: from 0, where each chunk's rows end
    key_ends: Tensor  # [chunks + 1] int32: from 0, where each chunk's keys end
    num_rows: tuple[int, ...]  # of each chunk
    num_keys: tuple[int, ...]  # of each chunk, its own rows' included


def group_chunks(num_keys: Sequence[int], token_bytes: int) -> list[slice]:
    """Divide chunks so that none but a lone one gathers more than the bound.

    token_bytes: that a gathered token takes, of one layer.
    """
    groups: list[slice] = []
    start = total = 0
    for index, keys in enumerate(num_keys):
        if index > start and (total + keys) * token_bytes > MAX_PROMPT_BYTES:
            groups.append(slice(start, index))
            start, total = index, 0
        total += keys
    return [*groups, slice(start, len(num_keys))] if num_keys else []


def prompt_bytes(token_bytes: int, *, max_model_len: int, max_num_seqs: int) -> int:
    """Return the most that one group gathers at a time."""
    longest = max_model_len * token_bytes
    return max(longest, min(MAX_PROMPT_BYTES, longest * max_num_seqs))


def attend_to_chunks(
    cache: KVCache,
    layer_index: int,
    query: Tensor,
    group: ChunkGroup,
    *,
    scale: float,
    window: int | None,
    has_flash: bool = True,
) -> Tensor:
    """Attend with a group's rows to what the cache holds, themselves included.

    query: [rows of the group, heads, head_dim]; returns the like. has_flash: whether flash
    attention may be taken, where it can be.
    """
    seen = cache.gather_slots(layer_index, group.slots).to(query.dtype)
    if has_flash and takes_flash(query.device, query.dtype, query.shape[2]):
        count("prompt_attention_flash")
        return attend_by_flash(query, seen, group, scale=scale, window=window)
    count("prompt_attention_sdpa")
    return attend_by_sdpa(query, seen, group, scale=scale, window=window)


@lru_cache
def takes_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether PyTorch's flash attention runs on a device and takes such numbers."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and torch.backends.cuda.is_flash_attention_available()
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= _MAX_FLASH_HEAD_DIM
        and _is_known_schema()
    )


def _is_known_schema() -> bool:
    """Whether this PyTorch's operation, a private one, still takes what it is given here."""
    arguments = flash_forward._schema.arguments
    by_place = tuple(argument.name for argument in arguments if not argument.kwarg_only)
    by_name = {argument.name for argument in arguments if argument.kwarg_only}
    return by_place == _GIVEN_BY_PLACE and by_name >= _GIVEN_BY_NAME


def attend_by_flash(
    query: Tensor, seen: Tensor, group: ChunkGroup, *, scale: float, window: int | None
) -> Tensor:
    """Attend in one launch; query heads share keys by its own rule.

    query: [rows, heads, head_dim]; seen: [keys of all, 2, kv_heads, head_dim].
    """
    keys, values = seen.unbind(1)
    attended: Tensor = flash_forward(
        query,
        keys,
        values,
        group.row_ends,
        group.key_ends,
        max(group.num_rows),
        max(group.num_keys),
        0.0,  # dropout
        # Causal, by the last rows: the last one sees the last key, however many more keys than rows
        # there are. So flash attention 2.1 and later have it, and PyTorch's own `CausalBias`
        # (torch.nn.attention.bias) relies on it for the lower right; its SDPA means the upper left.
        True,
        False,  # no mask for debugging
        scale=scale,
        # Tokens before a row's own that it sees; those after it are hidden either way.
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )[0]
    return attended


def attend_by_sdpa(
    query: Tensor, seen: Tensor, group: ChunkGroup, *, scale: float, window: int | None
) -> Tensor:
    """Attend chunk by chunk; arguments as in `attend_by_flash`."""
    rows = query.split_with_sizes(list(group.num_rows))
    keys = seen.split_with_sizes(list(group.num_keys))
    parts = [
        attend_onward(asking, asked, asked.shape[0] - asking.shape[0], scale, window)
        for asking, asked in zip(rows, keys, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
