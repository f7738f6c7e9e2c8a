"""What the routes are given to work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from service.api.large_bodies import LargeBodies
from service.observation.observation import Observation
from service.server.freed_memory import FreedMemory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from service.api.event_stream import StreamTiming
    from service.api.requests import RequestLimits
    from service.batches.keeper import BatchKeeper
    from service.observation.observed import ObservedVariant
    from service.server.lifecycle import Lifecycle
    from service.serving.served_model import ServedModel
    from service.variants.variant import VariantStatus


class Models(Protocol):
    """The served variants; `service.variants.supervisor.Supervisor` has them."""

    @property
    def statuses(self) -> list[VariantStatus]: ...

    @property
    def variants(self) -> Sequence[ObservedVariant]:
        """Every variant: first those that requests go to, then what a swap brings or leaves."""

    def resolve(self, name: str | None) -> str:
        """Return the served name that a request's `model` means: an alias, or none where one is.

        Raises ModelNotFoundError where none is given and several are served.
        """

    def find(self, name: str) -> tuple[VariantStatus, ServedModel | None]:
        """Return how a variant stands, and its model while it is loaded.

        Raises ModelNotFoundError.
        """

    def require_room(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError where no variant lets another request wait.

        Asked before a body is read, so that a crowd's refusals cost little. num_ahead: requests
        that were let pass, and have not reserved a place yet.
        """

    async def acquire(self, name: str, until_answered: ExitStack) -> ServedModel:
        """Return the model of this name, and keep it loaded until the request is answered.

        Raises ModelNotFoundError or UnavailableError.
        """


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The collaborators of the routes, and their bounds."""

    lifecycle: Lifecycle
    models: Models
    limits: RequestLimits
    timing: StreamTiming
    max_body_bytes: int
    observation: Observation = field(default_factory=Observation)
    memory: FreedMemory = field(default_factory=FreedMemory)
    bodies: LargeBodies = field(default_factory=LargeBodies)
    batches: BatchKeeper | None = None  # None offers neither files nor batches
