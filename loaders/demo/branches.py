"""What the demo consists of: its two repositories, their branches and how each is rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DEMO_REPO = "tetrad/SmolLM2-135M-Instruct-GPTQ"
DEMO_AWQ_REPO = "tetrad/SmolLM2-135M-Instruct-AWQ"


@dataclass(frozen=True, slots=True)
class DemoBranch:
    """One branch of one repository."""

    repo: str
    name: str
    quant_method: Literal["gptq", "awq"]
    bits: int
    group_size: int  # -1 is the whole input dimension
    act_order: bool
    description: str

    def __str__(self) -> str:
        return f"{self.repo}:{self.name}"


# Hidden 576 is no multiple of 128, so groups are 32, 64 or the whole input.
GPTQ_BRANCHES = tuple(
    DemoBranch(DEMO_REPO, name, "gptq", bits, group_size, act_order, description)
    for name, bits, group_size, act_order, description in (
        ("main", 4, 32, False, "Most compatible option."),
        ("gptq-4bit-32g-actorder_True", 4, 32, True, "4-bit, with act order and group size 32."),
        ("gptq-4bit-64g-actorder_True", 4, 64, True, "4-bit, with act order and group size 64."),
        ("gptq-8bit--1g-actorder_True", 8, -1, True, "8-bit, with act order and no groups."),
        ("gptq-8bit-64g-actorder_True", 8, 64, True, "8-bit, with act order and group size 64."),
        ("gptq-3bit-64g-actorder_True", 3, 64, True, "3-bit, smallest; its answers are poor."),
    )
)
AWQ_BRANCHES = (DemoBranch(DEMO_AWQ_REPO, "main", "awq", 4, 64, False, "4-bit, GEMM version."),)
BRANCHES = (*GPTQ_BRANCHES, *AWQ_BRANCHES)
