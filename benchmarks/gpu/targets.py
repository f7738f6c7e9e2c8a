"""What is aimed at on an H200, and what that means on another GPU.

The targets hold for a device that copies 4.3 TB/s and multiplies 790 TFLOP/s in bfloat16. A GPU
that does less has the same share of its own limit as its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.limit import (
    CODELLAMA_7B,
    CODELLAMA_13B,
    CODELLAMA_34B,
    CODELLAMA_70B,
    Ceilings,
    ModelShape,
    decode_limit,
    prefill_limit,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

H200 = Ceilings(bytes_per_s=4.3e12, flop_per_s=790e12)
# A measurement's context may be some tokens off the target's.
_NEAR_CONTEXT = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """Tokens a second on an H200."""

    shape: ModelShape
    what: str  # "decode" or "prefill"
    tokens_per_s: float
    batch: int = 1
    context: int = 512  # tokens before each that is decoded


TARGETS = (
    Target(CODELLAMA_7B, "decode", 600),
    Target(CODELLAMA_13B, "decode", 385),
    Target(CODELLAMA_34B, "decode", 190),
    Target(CODELLAMA_70B, "decode", 98),
    Target(CODELLAMA_7B, "decode", 7000, batch=32),
    Target(CODELLAMA_7B, "decode", 8000, batch=128),
    Target(CODELLAMA_34B, "decode", 2200, batch=32, context=4096),
    Target(CODELLAMA_7B, "prefill", 38000),
    Target(CODELLAMA_34B, "prefill", 8000),
)


def target_of(row: Mapping[str, Any], shape: ModelShape, ceilings: Ceilings) -> float | None:
    """Return the tokens a second that are aimed at for a measured row; None where nothing is."""
    for target in TARGETS:
        if target.shape == shape and _is_meant(target, row):
            return target.tokens_per_s * _limit(row, shape, ceilings) / _limit(row, shape, H200)
    return None


def _is_meant(target: Target, row: Mapping[str, Any]) -> bool:
    if target.what != row["what"]:
        return False
    if target.what == "prefill":
        return True
    is_near = abs(row["context"] - target.context) <= _NEAR_CONTEXT * target.context
    return target.batch == row["batch"] and is_near


def _limit(row: Mapping[str, Any], shape: ModelShape, ceilings: Ceilings) -> float:
    if row["what"] == "decode":
        return decode_limit(shape, row["batch"], row["context"], ceilings)
    return prefill_limit(shape, row["tokens"], ceilings)
