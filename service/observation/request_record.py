"""What is remembered of one request while it is answered: moments and numbers, never its text.

Whoever handles the request leaves marks in the record; what they say together is told once, at its
end, by `service.observation.request_story`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.outputs import FinishReason
    from engine.statistics import TokenTimes

NO_CALLER = "none"  # where no key is asked for, or none was right
OTHER_ENDPOINT = "other"  # whatever is no path of ours: clients may invent as many as they like


class ObservedUsage(Protocol):
    """Tokens read and made by one request."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int: ...


class ObservedGeneration(Protocol):
    """What is seen of a generation; `service.serving.generation.Generation` is one."""

    @property
    def usage(self) -> ObservedUsage:
        """The tokens so far."""

    @property
    def times(self) -> Sequence[TokenTimes]:
        """When each choice's tokens came."""

    @property
    def finish_reasons(self) -> Sequence[FinishReason | None]:
        """Why each choice ended; None for one that has not, or not by itself."""


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request; moments are by the monotonic clock."""

    endpoint: str = OTHER_ENDPOINT  # a path template of ours
    is_probe: bool = False  # of the server's state: what it answers refuses nobody anything
    started: float = field(default_factory=time.monotonic)
    request_id: str = ""
    caller: str = NO_CALLER  # a key's name
    address: str | None = None  # who asks, or whom a trusted proxy says to ask
    asked_model: str | None = None  # as the client wrote it: not to be trusted
    model: str | None = None  # a served one, which answers
    held_s: float = 0.0  # before it began, while others were refused
    body_read_at: float | None = None
    acquire_began_at: float | None = None  # a wait for the model, if it is a long one
    acquired_at: float | None = None
    generation: ObservedGeneration | None = None  # once it was submitted
    send_wait_s: float = 0.0  # for the client to take what was written
    status: int | None = None  # None while no answer has begun
    failure: str | None = None  # an error's code, or how else it was kept from its end
    is_of_batch: bool = False  # which asks again for what was not run, and tells of its own end
    is_refused_below: bool = False  # by the connection, which counts what it refuses
    ended: float | None = None

    def note_body(self) -> None:
        """Note that the body has come."""
        self.body_read_at = time.monotonic()

    def note_wait(self, asked_model: str | None) -> None:
        """Note that the request waits for its model."""
        self.asked_model = asked_model
        self.acquire_began_at = time.monotonic()

    def note_model(self, name: str) -> None:
        """Note that this model will answer."""
        self.model = name
        self.acquired_at = time.monotonic()
