"""Counts requests that have ended: each once, whatever became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.outputs import FinishReason
from engine.statistics import REQUEST_BOUNDS_S, Histogram
from service.observation.request_story import ABORTED, FAILED, comes_again

if TYPE_CHECKING:
    from service.observation.request_record import RequestRecord
    from service.observation.request_story import RequestStory

CHOICE_ENDS = (*(reason.value for reason in FinishReason), ABORTED, FAILED)
# 1, 2, 5, 10 and so on, as vLLM has them.
TOKEN_BOUNDS = tuple(
    float(step * 10**power) for power in range(6) for step in (1, 2, 5) if step * 10**power < 3e5
)


@dataclass(slots=True)
class ModelCounts:
    """What the requests of one model came to."""

    choice_ends: Counter[str] = field(default_factory=Counter)  # why choices ended
    # Of requests whose every choice came to its own end.
    total_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS_S))
    prompt_tokens: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
    generated_tokens: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))


class RequestCounts:
    """Every count of requests, by what it is told apart by."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()  # endpoint, status, caller
        self.rejections: Counter[tuple[str, str]] = Counter()  # why, caller
        self.tokens: Counter[tuple[str, str]] = Counter()  # kind, caller
        self.models: dict[str, ModelCounts] = {}

    def of(self, model: str) -> ModelCounts:
        """Return the counts of a served model."""
        counts = self.models.get(model)
        if counts is None:
            counts = self.models[model] = ModelCounts()
        return counts

    def note(self, record: RequestRecord, story: RequestStory) -> None:
        """Count a request that has ended; of one that comes again, only its tokens."""
        caller, tokens = record.caller, story.tokens
        is_to_come = comes_again(record)
        if not is_to_come:
            self.requests[record.endpoint, str(story.status), caller] += 1
        if tokens is None:
            if record.is_refused_below or is_to_come:
                return
            if _is_refused(record, story):
                self.rejections[story.outcome, caller] += 1
            return
        self.tokens["prompt", caller] += tokens.prompt_tokens
        self.tokens["cached", caller] += tokens.cached_tokens
        self.tokens["generated", caller] += tokens.generated_tokens
        if record.model is None:
            return
        counts = self.of(record.model)
        counts.choice_ends.update(tokens.choice_ends)
        if record.failure is None:
            counts.total_s.add(story.total_s)
            counts.prompt_tokens.add(tokens.prompt_tokens)
            counts.generated_tokens.add(tokens.generated_tokens)


def _is_refused(record: RequestRecord, story: RequestStory) -> bool:
    """Whether somebody asked for something and did not get it, by our own decision."""
    if record.is_probe or record.status is None:
        return False
    return 400 <= story.status < 500 or story.status == 503
