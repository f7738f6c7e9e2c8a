"""Families of metrics, made of plain counts in one line each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.statistics import Histogram

    Values = Iterable[tuple[Sequence[str], float]]  # by the labels' values
    Histograms = Iterable[tuple[Sequence[str], Histogram]]


def counter(
    name: str, text: str, labels: Sequence[str] = (), values: Values = ()
) -> CounterMetricFamily:
    """Make a counter; its samples are called by its name and `_total`."""
    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def gauge(
    name: str, text: str, labels: Sequence[str] = (), values: Values = ()
) -> GaugeMetricFamily:
    """Make a gauge."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def histogram(
    name: str, text: str, labels: Sequence[str] = (), values: Histograms = ()
) -> HistogramMetricFamily:
    """Make a histogram."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for label_values, found in values:
        bounds = (*(str(bound) for bound in found.bounds), "+Inf")
        counts = itertools.accumulate(found.counts)
        family.add_metric(label_values, list(zip(bounds, counts, strict=True)), found.total)
    return family
