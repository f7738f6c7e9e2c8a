"""Sequences in a paged cache, their blocks anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from native.attention import Sequences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BLOCK_SIZE = 16


def make_tables(lengths: Sequence[int], *, block_size: int = BLOCK_SIZE) -> tuple[Tensor, int]:
    """Give each sequence blocks of its own, in no order; short tables end in an empty block.

    Returns tables [sequences, blocks] int64, and how many slots the cache needs.
    """
    counts = [-(-length // block_size) for length in lengths]
    blocks = torch.randperm(sum(counts) + 3)[: sum(counts)]
    tables = torch.full((len(counts), max(counts)), sum(counts) + 3)
    for table, own in zip(tables, blocks.split(counts), strict=True):
        table[: len(own)] = own
    return tables, (sum(counts) + 4) * block_size


def slots_of(tables: Tensor, sequence: int, stop: int, *, block_size: int = BLOCK_SIZE) -> Tensor:
    """Say where a sequence's tokens before `stop` lie."""
    tokens = torch.arange(stop)
    return tables[sequence, tokens // block_size] * block_size + tokens % block_size


def last_rows(tables: Tensor, lengths: Sequence[int]) -> Sequences:
    """Let the last token of each sequence ask."""
    return Sequences(
        tables, torch.arange(len(lengths)), torch.tensor(lengths) - 1, block_size=BLOCK_SIZE
    )
