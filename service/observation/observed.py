"""What is seen when somebody scrapes: of the served variants, and of connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import enum
    from collections.abc import Mapping, Sequence

    from loaders.reports.self_test import SelfTestReport
    from service.observation.engine_lives import ObservedEngine
    from service.worker_protocol.model_description import CacheDescription, MemoryReport


class ObservedStatus(Protocol):
    """How a variant stands."""

    @property
    def state(self) -> enum.Enum:
        """What it is doing; the value is a word."""

    @property
    def num_restarts(self) -> int:
        """How often an engine of it was started again."""

    @property
    def pid(self) -> int | None:
        """The process that its engine runs in, if there is one."""

    @property
    def load_phases(self) -> Mapping[str, float]:
        """How long each phase of the last load took, in seconds."""

    @property
    def self_test(self) -> SelfTestReport | None:
        """The last one that was made."""


class ObservedModel(Protocol):
    """A variant while it is loaded."""

    @property
    def engine(self) -> ObservedEngine: ...

    @property
    def memory(self) -> MemoryReport | None: ...

    @property
    def cache(self) -> CacheDescription | None: ...


class ObservedVariant(Protocol):
    """One variant."""

    @property
    def name(self) -> str:
        """What clients call it."""

    @property
    def status(self) -> ObservedStatus: ...

    @property
    def served(self) -> ObservedModel | None:
        """The model, while it is loaded."""


class ObservedVariants(Protocol):
    """Every variant; of those with one name, first the one that requests go to."""

    @property
    def variants(self) -> Sequence[ObservedVariant]: ...


class ConnectionCounts(Protocol):
    """What is counted of connections; `service.server.connections` has it."""

    @property
    def num_open(self) -> int:
        """How many there are now."""

    @property
    def refused(self) -> Mapping[str, int]:
        """What never became a request, by reason."""

    @property
    def closed(self) -> Mapping[Any, int]:
        """Connections that were closed, by reason."""


def by_name(variants: ObservedVariants) -> dict[str, list[ObservedVariant]]:
    """Group the variants by name: during a swap there are two of one."""
    groups: dict[str, list[ObservedVariant]] = {}
    for variant in variants.variants:
        groups.setdefault(variant.name, []).append(variant)
    return groups
