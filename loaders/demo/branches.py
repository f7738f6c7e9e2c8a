"""What the demo consists of: its two repositories, their branches and how each is rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DEMO_REPO = "tetrad/SmolLM2-135M-Instruct-GPTQ"
DEMO_AWQ_REPO = "tetrad/SmolLM2-135M-Instruct-AWQ"
WEIGHTS_FILE = "model.safetensors"
# What the model's makers recommend for sampling, in their model card of SmolLM2-135M-Instruct.
RECOMMENDED_TEMPERATURE = 0.2
RECOMMENDED_TOP_P = 0.9


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
    symmetric: bool = False  # the zero point of every group is the middle code

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
REPOS = (DEMO_REPO, DEMO_AWQ_REPO)

# The branch that answers best for its speed. Asked to write a function that reverses a string,
# greedily and with the recommended sampling, both 8-bit branches return s[::-1]; the one without
# groups explains it shortly, the one with groups adds a wrong example; 4-bit group 32 strips white
# space in a loop (2026-11). Perplexities 12.46, 12.45 and 14.50.
DEMO_DEFAULT_BRANCH = "gptq-8bit--1g-actorder_True"


def branches_of(repo: str) -> tuple[DemoBranch, ...]:
    """Return the branches of one repository; none of one that is not the demo's."""
    return tuple(branch for branch in BRANCHES if branch.repo == repo)


def default_branch() -> DemoBranch:
    """Return the branch that is served where nothing is named."""
    return next(one for one in GPTQ_BRANCHES if one.name == DEMO_DEFAULT_BRANCH)
