"""What the test of a step found, in plain values, and how an error is measured."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# In units of the dtype's largest rounding error: both sides round what they store, and either may
# round once or twice on the way.
MAX_ROUNDINGS = 4.0
# Sums in float32, in another order than the reference's.
SUM_ERROR = 2**-14
# What a report says of results that are no numbers; JSON has no infinity.
WORST_OF_ALL = 1e9


class Part(enum.Enum):
    """What of a step can be done without."""

    STEP_KERNELS = "step kernels"
    FLASH = "flash attention"
    GRAPHS = "graphs"
    WHOLE_STEP = "whole step"  # its parts passed by themselves


@dataclass(frozen=True, slots=True)
class StepCheck:
    """One thing that was looked at."""

    name: str  # "add_norm", "graphs of 3 rows", "first tokens of 2 layers"
    part: Part
    passed: bool | None  # None where it could not be made; the detail says why
    detail: str
    worst: float | None = None  # the largest error found, as a share of what is allowed


def compare(found: Tensor, expected: Tensor, unit: float) -> float:
    """Return the largest error, as a share of what is allowed; what is no number is the worst.

    unit: the largest relative error of one rounding of what is compared. An error is allowed by
    the size of its own number, and by the typical size of all.
    """
    expected, found = expected.float(), found.float().to(expected.device)
    typical = expected.square().mean().sqrt()
    allowed = (MAX_ROUNDINGS * unit + SUM_ERROR) * (expected.abs() + typical)
    share = (found - expected).abs() / allowed.clamp(min=torch.finfo(torch.float32).tiny)
    return min(float(share.nan_to_num(nan=torch.inf).max()), WORST_OF_ALL)


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding to a dtype."""
    return torch.finfo(dtype).eps / 2


def off_by(share: float) -> str:
    """Say an error in words."""
    return f"off by {share:.3g} times what is allowed"
