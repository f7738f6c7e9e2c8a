"""The metrics of requests: vLLM's by model, ours by endpoint and caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.observation.engine_metrics import ENGINE, LABELS
from service.observation.families import counter, histogram
from service.observation.request_counts import CHOICE_ENDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

    from service.observation.request_counts import RequestCounts


def request_families(
    counts: RequestCounts, refused: Mapping[str, int], model_names: list[str]
) -> Iterator[Metric]:
    """Make the families.

    refused: by reason, what never became a request. model_names: whose counts are told from the
    start, as 0, so that a first failure shows as an increase.
    """
    yield from _model_families(counts, model_names)
    yield counter(
        "tetrad_http_requests",
        "Requests that ended; 499 where the client left before an answer began.",
        ("endpoint", "status", "caller"),
        counts.requests.items(),
    )
    rejections = dict(counts.rejections)
    for reason, number in refused.items():
        rejections[reason, "none"] = rejections.get((reason, "none"), 0) + number
    yield counter(
        "tetrad_rejections",
        "Requests that were refused, by the code of the error.",
        ("reason", "caller"),
        rejections.items(),
    )
    yield counter(
        "tetrad_tokens",
        "Tokens of requests that ended; cached ones are prompt tokens, too.",
        ("kind", "caller"),
        counts.tokens.items(),
    )


def _model_families(counts: RequestCounts, model_names: list[str]) -> Iterator[Metric]:
    models = {name: counts.of(name) for name in dict.fromkeys([*model_names, *counts.models])}
    yield counter(
        "vllm:request_success",
        "Choices that ended, by why: also those that were aborted or failed.",
        ("finished_reason", *LABELS),
        [
            ((end, name, ENGINE), found.choice_ends[end])
            for name, found in models.items()
            for end in CHOICE_ENDS
        ],
    )
    yield histogram(
        "vllm:e2e_request_latency_seconds",
        "From a request's arrival to the end of its answer.",
        LABELS,
        [((name, ENGINE), found.total_s) for name, found in models.items()],
    )
    yield histogram(
        "vllm:request_prompt_tokens",
        "Prompt tokens of a request.",
        LABELS,
        [((name, ENGINE), found.prompt_tokens) for name, found in models.items()],
    )
    yield histogram(
        "vllm:request_generation_tokens",
        "Tokens generated for a request.",
        LABELS,
        [((name, ENGINE), found.generated_tokens) for name, found in models.items()],
    )
