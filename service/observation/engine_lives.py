"""Adds up what a model's engines have done, over all their lives: a restart takes nothing back.

An engine's own counts begin anew with each of its lives. Those of engines that have ended are kept
here, by the served name; a model that is unloaded, swapped or forgotten keeps them.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

from engine.statistics import Latencies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.statistics import EngineStatistics


class ObservedEngine(Protocol):
    """What is seen of an engine."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes work."""

    @property
    def statistics(self) -> EngineStatistics | None:
        """What it last reported of itself."""

    @property
    def latencies(self) -> Latencies:
        """How long its sequences waited and its tokens took."""


@dataclass(slots=True)
class EngineTotals:
    """What a model's engines have done; each count is `EngineStatistics`' of the same name."""

    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def add(self, statistics: EngineStatistics | EngineTotals | None, latencies: Latencies) -> None:
        """Add what one engine has done."""
        if statistics is not None:
            for name in _COUNTS:
                setattr(self, name, getattr(self, name) + getattr(statistics, name))
        self.latencies.merge(latencies)


_COUNTS = tuple(each.name for each in fields(EngineTotals) if each.name != "latencies")


class EngineLives:
    """The engines of every model, by its served name."""

    def __init__(self) -> None:
        self._ended: dict[str, EngineTotals] = {}
        self._known: dict[str, list[ObservedEngine]] = {}  # whose counts may still grow
        # Booked already, and perhaps met once more: during a swap an engine that has died is still
        # its variant's for a moment, while requests go to the new one.
        self._closed: weakref.WeakSet[ObservedEngine] = weakref.WeakSet()

    @property
    def names(self) -> list[str]:
        """Every model that an engine was seen of."""
        return list(self._known)

    def see(self, name: str, engine: ObservedEngine) -> None:
        """Take note of a model's engine: with each request, so that none is missed."""
        known = self._known.setdefault(name, [])
        if engine not in self._closed and not any(engine is one for one in known):
            self._close(name, keep=[engine])
            self._known[name].append(engine)

    def totals(self, name: str, current: Iterable[ObservedEngine]) -> EngineTotals:
        """Add up what a model's engines have done; current: those that there are now."""
        current = list(current)
        for engine in current:
            self.see(name, engine)
        self._close(name, keep=current)
        totals = EngineTotals()
        if (ended := self._ended.get(name)) is not None:
            totals.add(ended, ended.latencies)
        for engine in self._known.get(name, ()):
            totals.add(engine.statistics, engine.latencies)
        return totals

    def _close(self, name: str, keep: list[ObservedEngine]) -> None:
        """Keep the counts of engines that have ended, and let go of the engines.

        keep: what may still take in what its engine said last, dead or not.
        """
        still = []
        for engine in self._known.get(name, ()):
            if engine.is_alive or any(engine is one for one in keep):
                still.append(engine)
            else:
                self._closed.add(engine)
                self._ended.setdefault(name, EngineTotals()).add(
                    engine.statistics, engine.latencies
                )
        self._known[name] = still
