"""What the dashboard for Grafana shows: groups of panels, each with its unit and its queries.

What the metrics mean is said in docs/operations.md; `dashboard` makes Grafana's JSON of it.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a query looks at, by the variables above the dashboard.
SERVER = 'instance=~"$instance"'
MODEL = 'instance=~"$instance",model_name=~"$model_name"'
# Probes and scrapes are nobody's work: a server that is asked little would seem to fail, or not to.
WORK = f'{SERVER},endpoint!~"/health/.*|/metrics"'
WINDOW = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    """One line, or several that differ by labels."""

    expression: str  # in PromQL
    legend: str  # labels in {{…}}


@dataclass(frozen=True)
class Panel:
    """One graph."""

    title: str
    unit: str  # as Grafana calls it
    queries: tuple[Query, ...]
    description: str = ""
    largest: float | None = None  # end of the axis; None lets it follow the figures


@dataclass(frozen=True)
class Group:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, *, by: str, where: str = MODEL) -> str:
    """How fast a counter grows, added up over what is not named."""
    return f"sum by ({by}) (rate({metric}{{{where}}}{WINDOW}))"


def quantiles(histogram: str, *, by: str = "model_name", where: str = MODEL) -> tuple[Query, ...]:
    """Median, and the 99th of a hundred."""
    name = "{{" + by + "}}"
    buckets = rate(f"{histogram}_bucket", by=f"{by}, le", where=where)
    return tuple(
        Query(f"histogram_quantile({share}, {buckets})", f"{words} {name}")
        for share, words in (("0.5", "p50"), ("0.99", "p99"))
    )


def share_of_requests(which: str) -> str:
    """How many requests for work are such; 0 where none is, as counts begin with the first."""
    all_requests = rate("tetrad_http_requests_total", by="instance", where=WORK)
    such = rate("tetrad_http_requests_total", by="instance", where=f"{WORK},{which}")
    return f"({such} or 0 * {all_requests}) / {all_requests}"


def last(metric: str, legend: str, *, where: str = MODEL) -> Query:
    """What is told now."""
    return Query(f"{metric}{{{where}}}", legend)


BY_MODEL = "{{model_name}}"
BY_SERVER = "{{instance}}"

TRAFFIC = Group(
    "Traffic",
    (
        Panel(
            "Requests by endpoint",
            "reqps",
            (
                Query(
                    rate("tetrad_http_requests_total", by="endpoint", where=SERVER), "{{endpoint}}"
                ),
            ),
        ),
        Panel(
            "Requests by status",
            "reqps",
            (Query(rate("tetrad_http_requests_total", by="status", where=SERVER), "{{status}}"),),
        ),
        Panel(
            "Running and waiting",
            "short",
            (
                last("vllm:num_requests_running", f"running {BY_MODEL}"),
                last("vllm:num_requests_waiting", f"waiting {BY_MODEL}"),
            ),
            "Sequences. A request with n = 3 is three.",
        ),
        Panel(
            "Answers by how they ended",
            "reqps",
            (
                Query(
                    rate("vllm:request_success_total", by="finished_reason"), "{{finished_reason}}"
                ),
            ),
        ),
        Panel(
            "Tokens by caller",
            "short",
            (
                Query(
                    rate("tetrad_tokens_total", by="caller, kind", where=SERVER),
                    "{{caller}} {{kind}}",
                ),
            ),
            "A second. Cached ones are a part of the prompt's.",
        ),
        Panel(
            "Length of prompts and answers",
            "short",
            tuple(
                Query(
                    f"{rate(f'vllm:request_{part}_tokens_sum', by='model_name')}"
                    f" / {rate(f'vllm:request_{part}_tokens_count', by='model_name')}",
                    f"{words} {BY_MODEL}",
                )
                for part, words in (("prompt", "prompt"), ("generation", "answer"))
            ),
            "Tokens, on average.",
        ),
    ),
)

LATENCY = Group(
    "Latency",
    (
        Panel("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds")),
        Panel("Between two tokens", "s", quantiles("vllm:inter_token_latency_seconds")),
        Panel("In the queue", "s", quantiles("vllm:request_queue_time_seconds")),
        Panel("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds")),
        Panel(
            "Share of first tokens within a second",
            "percentunit",
            (
                Query(
                    "sum by (model_name) "
                    f'(rate(vllm:time_to_first_token_seconds_bucket{{{MODEL},le="1.0"}}{WINDOW}))'
                    f" / {rate('vllm:time_to_first_token_seconds_count', by='model_name')}",
                    BY_MODEL,
                ),
            ),
            largest=1,
        ),
    ),
)

ENGINE = Group(
    "Tokens and KV cache",
    (
        Panel(
            "Tokens",
            "short",
            (
                Query(rate("vllm:prompt_tokens_total", by="model_name"), f"prompt {BY_MODEL}"),
                Query(
                    rate("vllm:generation_tokens_total", by="model_name"), f"generated {BY_MODEL}"
                ),
            ),
            "A second.",
        ),
        Panel(
            "KV cache in use",
            "percentunit",
            (last("vllm:kv_cache_usage_perc", BY_MODEL),),
            largest=1,
        ),
        Panel(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            (
                Query(
                    f"{rate('vllm:prefix_cache_hits_total', by='model_name')} / clamp_min("
                    f"{rate('vllm:prefix_cache_queries_total', by='model_name')}, 1e-9)",
                    BY_MODEL,
                ),
            ),
            largest=1,
        ),
        Panel(
            "Preemptions",
            "cps",
            (Query(rate("vllm:num_preemptions_total", by="model_name"), BY_MODEL),),
            "Sequences that lost their blocks to others, and are computed again.",
        ),
        Panel(
            "Guessed tokens that were right",
            "percentunit",
            (
                Query(
                    f"{rate('tetrad_accepted_tokens_total', by='model_name')} / clamp_min("
                    f"{rate('tetrad_draft_tokens_total', by='model_name')}, 1e-9)",
                    BY_MODEL,
                ),
            ),
            "0 where num_speculative_tokens is 0.",
            largest=1,
        ),
    ),
)

BATCHES = Group(
    "Batches",
    (
        Panel(
            "Requests of open batches",
            "short",
            (last("tetrad_batch_lines", "{{state}} {{instance}}", where=SERVER),),
            "Those that have no answer yet.",
        ),
        Panel(
            "Answered requests of batches",
            "cps",
            (
                Query(
                    rate("tetrad_batch_lines_done_total", by="outcome", where=SERVER),
                    "{{outcome}}",
                ),
            ),
            "A second, by outcome.",
        ),
        Panel(
            "Open and stopped batches",
            "short",
            (
                last("tetrad_batches_open", f"open {BY_SERVER}", where=SERVER),
                last("tetrad_batches_stopped", f"stopped {BY_SERVER}", where=SERVER),
            ),
            "A fault, mostly of the disk, has stopped those that are stopped.",
        ),
        Panel(
            "Age of the oldest open batch",
            "s",
            (last("tetrad_batch_oldest_seconds", BY_SERVER, where=SERVER),),
        ),
    ),
)

REFUSALS = Group(
    "Refusals and errors",
    (
        Panel(
            "Refused, by reason",
            "reqps",
            (Query(rate("tetrad_rejections_total", by="reason", where=SERVER), "{{reason}}"),),
        ),
        Panel(
            "Share of 429",
            "percentunit",
            (
                Query(
                    share_of_requests('status="429"'),
                    BY_SERVER,
                ),
            ),
        ),
        Panel(
            "Share of 5xx",
            "percentunit",
            (
                Query(
                    share_of_requests('status=~"5.."'),
                    BY_SERVER,
                ),
            ),
        ),
    ),
)

ENGINES = Group(
    "Engines",
    (
        Panel("Ready", "short", (last("tetrad_ready", BY_SERVER, where=SERVER),), largest=1),
        Panel(
            "State",
            "short",
            (
                Query(
                    f"tetrad_variant_state{{{MODEL}}} == 1",
                    f"{BY_MODEL} {{{{state}}}}",
                ),
            ),
            largest=1,
        ),
        Panel(
            "Restarts",
            "short",
            (
                Query(
                    f"increase(tetrad_engine_restarts_total{{{MODEL}}}[$__range])",
                    BY_MODEL,
                ),
            ),
            "In the time that is shown.",
        ),
        Panel(
            "Self-test passed",
            "short",
            (last("tetrad_self_test_passed", BY_MODEL),),
            largest=1,
        ),
        Panel(
            "Time to load, by phase",
            "s",
            (last("tetrad_load_phase_seconds", f"{BY_MODEL} {{{{phase}}}}"),),
        ),
        Panel(
            "Memory of the engine, predicted and measured",
            "bytes",
            (
                last("tetrad_memory_predicted_bytes", f"predicted {BY_MODEL} {{{{part}}}}"),
                last("tetrad_memory_measured_bytes", f"measured {BY_MODEL} {{{{part}}}}"),
            ),
        ),
        Panel(
            "Resident memory of the engine's process",
            "bytes",
            (last("tetrad_engine_resident_bytes", BY_MODEL),),
            "The machine's memory: of an engine on a GPU not what lies there.",
        ),
        Panel(
            "Processor time of the engine's process",
            "percentunit",
            (Query(rate("tetrad_engine_cpu_seconds_total", by="model_name"), BY_MODEL),),
            "1 is one core.",
        ),
    ),
)

PROCESS = Group(
    "Server process",
    (
        Panel(
            "Resident memory",
            "bytes",
            (last("tetrad_process_resident_memory_bytes", BY_SERVER, where=SERVER),),
            "Of the process that speaks HTTP; each engine has its own.",
        ),
        Panel(
            "Processor",
            "percentunit",
            (
                Query(
                    f"rate(tetrad_process_cpu_seconds_total{{{SERVER}}}{WINDOW})",
                    BY_SERVER,
                ),
            ),
            "1 is one core.",
        ),
        Panel(
            "Descriptors",
            "short",
            (
                last("tetrad_process_open_fds", f"open {BY_SERVER}", where=SERVER),
                last("tetrad_process_max_fds", f"limit {BY_SERVER}", where=SERVER),
            ),
        ),
        Panel(
            "Connections",
            "short",
            (last("tetrad_connections_open", BY_SERVER, where=SERVER),),
        ),
        Panel(
            "Connections closed by the server",
            "cps",
            (
                Query(
                    rate("tetrad_connections_closed_total", by="reason", where=SERVER), "{{reason}}"
                ),
            ),
        ),
        Panel(
            "Event loop lag",
            "s",
            quantiles("tetrad_event_loop_lag_seconds", by="instance", where=SERVER),
            "How much later than asked for the event loop comes round.",
        ),
    ),
)

GROUPS = (TRAFFIC, LATENCY, ENGINE, BATCHES, REFUSALS, ENGINES, PROCESS)
