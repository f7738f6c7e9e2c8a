"""Makes families of metrics of what was counted, when somebody scrapes.

vLLM's names where it has one, so that what was made for it works; `tetrad_…` for the rest. Models
are told apart by their served names, callers by their keys' names, endpoints by path templates:
nothing that a client can invent becomes a label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8

from service.observation.batch_metrics import batch_families
from service.observation.engine_metrics import engine_families
from service.observation.engine_processes import engine_pids, engine_process_families
from service.observation.families import counter, gauge, histogram
from service.observation.request_metrics import request_families
from service.observation.variant_metrics import RestartCounts, variant_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from service.observation.batch_metrics import ObservedBatches
    from service.observation.observation import Observation
    from service.observation.observed import ObservedVariants


class Metrics:
    """Everything that can be scraped; a collector in the words of prometheus-client."""

    def __init__(
        self,
        observation: Observation,
        variants: ObservedVariants,
        *,
        is_ready: Callable[[], bool] | None = None,
        batches: ObservedBatches | None = None,
    ) -> None:
        """is_ready: whether /health/ready answers 200; None tells nothing of it, nor of batches."""
        self._batches = batches
        self._observation = observation
        self._variants = variants
        self._is_ready = is_ready
        self._restarts = RestartCounts()
        self._process = ProcessCollector(namespace="tetrad", registry=None)

    @property
    def engine_pids(self) -> dict[str, list[int]]:
        """The engines' processes, by model: what they take is read beside the event loop."""
        return engine_pids(self._variants)

    def collect(self) -> Iterator[Metric]:
        """Make every family of what is counted in this process."""
        observation, variants = self._observation, self._variants
        connections = observation.connections
        yield from engine_families(variants, observation.lives)
        yield from request_families(
            observation.counts,
            {} if connections is None else connections.refused,
            [variant.name for variant in variants.variants],
        )
        yield from variant_families(variants, self._restarts)
        if self._is_ready is not None:
            yield gauge(
                "tetrad_ready",
                "Whether /health/ready answers 200: every required variant is served.",
                (),
                [((), float(self._is_ready()))],
            )
        if self._batches is not None:
            yield from batch_families(self._batches)
        if connections is not None:
            yield gauge(
                "tetrad_connections_open", "Open connections.", (), [((), connections.num_open)]
            )
            yield counter(
                "tetrad_connections_closed",
                "Connections that the server closed, by why.",
                ("reason",),
                [((str(reason),), number) for reason, number in connections.closed.items()],
            )
        yield histogram(
            "tetrad_event_loop_lag_seconds",
            "How late a timer came, once a second: how long whatever came had to wait.",
            (),
            [((), observation.lag.delays)],
        )
        yield counter(
            "tetrad_log_lines_dropped",
            "Log lines that nobody took from standard error in time, or that could not be written.",
            (),
            [((), observation.num_lines_dropped())],
        )
        yield from self._process.collect()


class Scrape:
    """What was counted at one moment: it may be written in another thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._families = list(metrics.collect())
        self._engine_pids = metrics.engine_pids

    def collect(self) -> list[Metric]:
        """Return every family; asks the system about the engines' processes."""
        return [*self._families, *engine_process_families(self._engine_pids)]

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all of it in the form that a scraper takes, and that form's media type."""
        encode, media_type = choose_encoder(accept)
        # Colons are letters of a name, but to scrapers that say nothing of escaping, as Prometheus
        # before 3, the library would tell `vllm:…` as `vllm_…`.
        return encode(self, escaping=ALLOWUTF8), media_type  # type: ignore[call-arg]
