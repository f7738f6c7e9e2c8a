"""How good a variant is expected to be, beside others of the same model.

An order, not a measurement: more bits before fewer; with the same bits smaller groups before larger
and act order before none, as the publishers' own tables say. A perplexity that was measured here
is shown beside it, and decides where all that are compared have one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loaders.catalogue.variants import Variant

# Only their order means something. Less than 1 in sum, so that a bit outweighs the rest: published
# perplexities of Llama 2 lose less from 4-bit groups of 128 to 32 than from 4 bits to 3.
_GROUP_BONUS = ((32, 0.4), (64, 0.3), (128, 0.2), (1024, 0.1))
_ACT_ORDER_BONUS = 0.25
_AWQ_BONUS = 0.2  # scales that protect what activations make important; near to act order
_DENSE = 16.0
# GGUF's types by falling quality, in the order of model cards' "use case" column and llama.cpp's
# tool.
_GGUF = {
    "F32": 16.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.4, "Q6_K": 6.4, "Q5_K_M": 5.6, "Q5_K_S": 5.5,
    "Q5_1": 5.4, "Q5_0": 5.3, "Q4_K_M": 4.6, "Q4_K_S": 4.5, "Q4_1": 4.3, "Q4_0": 4.2,
    "Q3_K_L": 3.6, "Q3_K_M": 3.5, "Q3_K_S": 3.2, "Q2_K": 2.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quality:
    """What is known of a variant's quality."""

    rank: float  # higher is better; comparable between variants of one model only
    words: str  # what the rank follows from
    perplexity: float | None  # measured on this machine or with the package; lower is better


def expected_quality(variant: Variant, perplexity: object = None) -> Quality:
    """Rank a variant; perplexity: what was recorded for its commit, if anything."""
    measured = _number(perplexity)
    if variant.kind == "gguf":
        name = (variant.gguf_type or "").upper()
        return Quality(_GGUF.get(name, 0.0), name or "GGUF of unknown type", measured)
    if variant.quantization is None:
        return Quality(_DENSE, "not quantised", measured)
    base, desc_act = variant.quantization.base, variant.quantization.desc_act
    rank = base.bits + _group_bonus(base.group_size)
    rank += _ACT_ORDER_BONUS if desc_act else 0
    rank += _AWQ_BONUS if base.quant_method == "awq" else 0
    group = "no groups" if base.group_size == -1 else f"groups of {base.group_size}"
    return Quality(rank, f"{base.bits}-bit, {group}" + (", act order" * desc_act), measured)


def _group_bonus(group_size: int) -> float:
    if group_size == -1:
        return 0.0
    return next((bonus for limit, bonus in _GROUP_BONUS if group_size <= limit), 0.0)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 1 else None
