"""Tells whether one tensor is a copy of another, whatever precision each is stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# What is stored in half precision is off by 2**-9 at most, its smallest numbers by 3e-8.
_TOLERANCE = 2**-7
_SMALLEST = 1e-7
_ROWS_AT_ONCE = 4096  # of a head that is compared with the embedding; each is widened


def is_copy(own: Tensor, embedding: Tensor) -> bool:
    """Tell whether a head's weight is the embedding."""
    if own is embedding:
        return True
    if own.shape != embedding.shape:
        return False
    return all(
        is_close(own[start : start + _ROWS_AT_ONCE], embedding[start : start + _ROWS_AT_ONCE])
        for start in range(0, len(own), _ROWS_AT_ONCE)
    )


def is_close(stored: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors differ by no more than their precision."""
    return torch.allclose(
        stored.float().cpu(), other.float().cpu(), rtol=_TOLERANCE, atol=_SMALLEST
    )
