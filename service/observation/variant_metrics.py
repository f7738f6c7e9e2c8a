"""The metrics of variants: what each does, how it was loaded, what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.observation.families import counter, gauge
from service.observation.observed import by_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from service.observation.observed import ObservedVariant, ObservedVariants

OTHER_PART = "other"  # of what was measured: all that is not the KV cache


class RestartCounts:
    """Counts restarts by name, those of variants that were swapped or forgotten among them."""

    def __init__(self) -> None:
        self._past: dict[str, int] = {}
        self._known: list[ObservedVariant] = []

    def totals(self, variants: Sequence[ObservedVariant]) -> dict[str, int]:
        """Return the restarts by name; variants: all there are now."""
        for gone in self._known:
            if not any(gone is variant for variant in variants):
                self._past[gone.name] = self._past.get(gone.name, 0) + gone.status.num_restarts
        self._known = list(variants)
        totals = dict(self._past)
        for variant in variants:
            totals[variant.name] = totals.get(variant.name, 0) + variant.status.num_restarts
        return totals


def variant_families(variants: ObservedVariants, restarts: RestartCounts) -> Iterator[Metric]:
    """Make the families."""
    yield counter(
        "tetrad_engine_restarts",
        "Engines that ended and were started again.",
        ("model_name",),
        [((name,), count) for name, count in restarts.totals(variants.variants).items()],
    )
    routed = {name: group[0] for name, group in by_name(variants).items()}
    yield from _state_families(routed)
    yield from _memory_families(routed)


def _state_families(routed: Mapping[str, ObservedVariant]) -> Iterator[Metric]:
    statuses = {name: variant.status for name, variant in routed.items()}
    yield gauge(
        "tetrad_variant_state",
        "What a variant is doing: 1 for the state that it is in, 0 for the others.",
        ("model_name", "state"),
        [
            ((name, str(state.value)), float(state is status.state))
            for name, status in statuses.items()
            for state in type(status.state)
        ],
    )
    yield gauge(
        "tetrad_load_phase_seconds",
        "How long each phase of the last load took.",
        ("model_name", "phase"),
        [
            ((name, phase), seconds)
            for name, status in statuses.items()
            for phase, seconds in status.load_phases.items()
        ],
    )
    yield gauge(
        "tetrad_self_test_passed",
        "Whether the last self-test was passed.",
        ("model_name",),
        [
            ((name,), float(status.self_test.passed))
            for name, status in statuses.items()
            if status.self_test is not None
        ],
    )


def _memory_families(routed: Mapping[str, ObservedVariant]) -> Iterator[Metric]:
    predicted: list[tuple[tuple[str, str], float]] = []
    measured: list[tuple[tuple[str, str], float]] = []
    for name, variant in routed.items():
        report = None if variant.served is None else variant.served.memory
        if report is None:
            continue
        predicted += [((name, part), size) for part, size in report.breakdown.items()]
        measured.append(((name, "kv_cache"), report.kv_cache))
        measured.append(((name, OTHER_PART), report.measured - report.kv_cache))
    labels = ("model_name", "part")
    yield gauge(
        "tetrad_memory_predicted_bytes",
        "Memory that a loaded variant was predicted to take; the parts add up.",
        labels,
        predicted,
    )
    yield gauge(
        "tetrad_memory_measured_bytes",
        "Memory that a loaded variant was measured to take; the parts add up.",
        labels,
        measured,
    )
