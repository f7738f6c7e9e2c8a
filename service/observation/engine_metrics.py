"""The metrics of engines, under vLLM's names.

What is there now is told of loaded models only; what was counted is told of every model that ever
ran here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.observation.families import counter, gauge, histogram
from service.observation.observed import by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from engine.statistics import EngineStatistics, Histogram
    from service.observation.engine_lives import EngineLives, EngineTotals
    from service.observation.observed import ObservedModel, ObservedVariant, ObservedVariants

LABELS = ("model_name", "engine")
ENGINE = "0"  # one engine runs a model here

_COUNTERS = {
    "vllm:num_preemptions": (
        "num_preemptions",
        "Sequences that gave their blocks back and had to be computed again.",
    ),
    "vllm:prefix_cache_queries": ("prefix_cache_queries", "Prompt tokens looked up in the cache."),
    "vllm:prefix_cache_hits": ("prefix_cache_hits", "Prompt tokens found in the cache."),
    "vllm:prompt_tokens": ("num_prompt_tokens", "Prompt tokens of sequences that began."),
    "vllm:generation_tokens": ("num_generated_tokens", "Tokens generated."),
    "tetrad_draft_tokens": ("num_drafted_tokens", "Tokens guessed ahead."),
    "tetrad_accepted_tokens": ("num_accepted_tokens", "Guessed tokens that were right."),
}
_HISTOGRAMS: Mapping[str, tuple[Callable[[EngineTotals], Histogram], str]] = {
    "vllm:time_to_first_token_seconds": (
        lambda totals: totals.latencies.first_token,
        "From a sequence's submission to its first token.",
    ),
    "vllm:inter_token_latency_seconds": (
        lambda totals: totals.latencies.between_tokens,
        "Between two steps that gave a sequence tokens.",
    ),
    "vllm:request_queue_time_seconds": (
        lambda totals: totals.latencies.queue,
        "From a sequence's arrival at the engine until it first ran.",
    ),
}


_BACKGROUND: Mapping[str, Callable[[EngineStatistics], int]] = {
    "running": lambda statistics: statistics.num_background_running,
    "waiting": lambda statistics: statistics.num_background_waiting,
}


def engine_families(variants: ObservedVariants, lives: EngineLives) -> Iterator[Metric]:
    """Make the families."""
    groups = by_name(variants)
    yield from _current_families(groups)
    totals = {
        name: lives.totals(name, [model.engine for model in _loaded(groups.get(name, []))])
        for name in dict.fromkeys([*groups, *lives.names])
    }
    for name, (field, text) in _COUNTERS.items():
        yield counter(
            name,
            text,
            LABELS,
            [((model, ENGINE), getattr(totals[model], field)) for model in totals],
        )
    for name, (read, text) in _HISTOGRAMS.items():
        yield histogram(
            name, text, LABELS, [((model, ENGINE), read(found)) for model, found in totals.items()]
        )


def _loaded(variants: Sequence[ObservedVariant]) -> list[ObservedModel]:
    return [variant.served for variant in variants if variant.served is not None]


def _current_families(groups: Mapping[str, Sequence[ObservedVariant]]) -> Iterator[Metric]:
    """Tell of what is there now: nothing of a model that is not loaded."""
    now: dict[str, list[EngineStatistics]] = {}
    for name, variants in groups.items():
        engines = [model.engine for model in _loaded(variants)]
        found = [each.statistics for each in engines if each.is_alive and each.statistics]
        if found:
            now[name] = found

    def family(name: str, text: str, read: Callable[[Sequence[EngineStatistics]], float]) -> Metric:
        values = [((model, ENGINE), read(found)) for model, found in now.items()]
        return gauge(name, text, LABELS, values)

    yield family(
        "vllm:num_requests_running",
        "Sequences that run; those of batches are told apart.",
        lambda found: sum(each.num_running for each in found),
    )
    yield family(
        "vllm:num_requests_waiting",
        "Sequences that wait for a slot: new, paused or preempted.",
        lambda found: sum(each.num_waiting for each in found),
    )
    yield gauge(
        "tetrad_background_sequences",
        "Sequences of batches, which give way to all others.",
        ("model_name", "state"),
        [
            ((model, state), float(sum(read(each) for each in found)))
            for model, found in now.items()
            for state, read in _BACKGROUND.items()
        ],
    )
    yield family("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", _cache_usage)
    yield gauge(
        "tetrad_engine_threads",
        "Threads that compute on the CPU: fewer beside busy processes, where nothing fixes them.",
        ("model_name",),
        [
            ((model,), float(sum(each.num_threads for each in found)))
            for model, found in now.items()
        ],
    )
    yield _cache_family(groups)


def _cache_usage(found: Sequence[EngineStatistics]) -> float:
    num_blocks = sum(each.num_blocks for each in found)
    num_free = sum(each.num_free_blocks for each in found)
    return 1 - num_free / num_blocks if num_blocks else 0.0


def _cache_family(groups: Mapping[str, Sequence[ObservedVariant]]) -> Metric:
    """Tell how a model's KV cache is made: of two during a swap, the one that requests go to."""
    labels = ("block_size", "cache_dtype", "enable_prefix_caching", "num_gpu_blocks", *LABELS)
    values = []
    for name, variants in groups.items():
        caches = [model.cache for model in _loaded(variants) if model.cache is not None]
        for cache in caches[:1]:
            described = (
                str(cache.block_size),
                cache.dtype,
                str(cache.has_prefix_cache),
                str(cache.num_blocks),
            )
            values.append(((*described, name, ENGINE), 1.0))
    return gauge("vllm:cache_config_info", "How the KV cache is made.", labels, values)
