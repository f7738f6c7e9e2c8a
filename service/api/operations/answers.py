"""What the endpoints for operators answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.statistics import EngineStatistics, LiveCheckStatistics
from service.api.answer_model import AnswerModel
from service.server.lifecycle import Phase
from service.variants.variant import VariantState


class Liveness(AnswerModel):
    """That this process answers."""

    status: Literal["alive"]


class ServerVersion(AnswerModel):
    """What this server is."""

    version: str


class SelfTestOutcome(AnswerModel):
    """How a variant's last self-test ended."""

    passed: bool
    finished: float = Field(description="Seconds since 1970.")


class VariantHealth(AnswerModel):
    """How a variant stands; not its name, nor why it failed: nobody was asked for a key."""

    state: VariantState
    degraded: Literal[True] | None = Field(
        default=None, description="Something was given up so that it could be loaded."
    )
    suspect: Literal[True] | None = Field(
        default=None, description="There are reasons to doubt that its files were read right."
    )
    step: str | None = Field(default=None, description="Of loading, while it loads.")
    percent: int | None = Field(default=None, description="Of the step, where that can be told.")
    self_test: SelfTestOutcome | None = None


class Readiness(AnswerModel):
    """How the server stands."""

    phase: Phase
    uptime_s: float
    variants: list[VariantHealth]


class VariantReport(AnswerModel):
    """How a variant stands, for its administrator."""

    model: str = Field(description="Its served name.")
    variant: str = Field(description="What it is: a repository and branch, a folder.")
    state: VariantState
    step: str | None = Field(description="Of loading, while it loads.")
    percent: float | None = Field(description="Of the step, where that can be told.")
    reason: str | None = Field(description="Why it failed, or was started again last.")
    degraded: str | None = Field(description="What was given up so that it could be loaded.")
    suspect: list[str] | None = Field(description="Why its files may have been read wrongly.")
    restarts: int
    open_requests: int
    pid: int | None = Field(description="Of its engine's process.")
    statistics: EngineStatistics | None
    live_check: LiveCheckStatistics | None


class ListedVariant(VariantReport):
    """How a variant stands, and its part in a swap."""

    role: str = Field(description="`routed`, `incoming` or `outgoing`.")
    failed_swap: str | None = Field(description="Why the last swap by this name failed.")


class VariantList(AnswerModel):
    """Every variant."""

    data: list[ListedVariant]


class Removal(AnswerModel):
    """What was forgotten."""

    removed: str = Field(description="Its served name.")


class IntegrityAnswer(AnswerModel):
    """Whether an engine's accounting is right."""

    is_idle: bool
    problem: str | None
