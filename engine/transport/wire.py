"""What crosses the border between the API's process and an engine's, and how it is written.

Plain values as MessagePack, decoded into the very types that both sides work with; nothing that
could name code. Commands go to the engine, events come from it; `sockets` carries both.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from engine import errors
from engine.encoded import (
    EncodedLoadAttempt,
    EncodedModelDescription,
    EncodedStartFailure,
)
from engine.errors import EngineError, QueueFullError
from engine.outputs import PromptLogprobs, SequenceStarted, TokenOutput
from engine.request import SequenceRequest
from engine.statistics import EngineStatistics, LiveCheckStatistics

# ── commands ────────────────────────────────────────────────────────────────────────────────────


class Work(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All that one turn of the client's event loop submitted and aborted."""

    number: int  # counts from 1; a report says up to which one the engine has taken them in
    requests: list[SequenceRequest]
    aborted: list[int]  # sequence ids, these requests' among them


class CheckIntegrity(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Ask whether the engine's accounting is right."""


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """End after the step under way."""


class Wakeup(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Wake up: another thread of the engine's process is done with something."""


EngineCommand: TypeAlias = Work | CheckIntegrity | Shutdown | Wakeup

# ── events ──────────────────────────────────────────────────────────────────────────────────────


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """How far loading has come."""

    phase: str  # for people; an open list: "downloading", "preparing kernels", …
    percent: float | None = None  # of the phase, where it is known
    load_attempt: EncodedLoadAttempt | None = None  # what is tried, each time more is known of it


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine takes work from now on."""

    vocab_size: int
    max_model_len: int
    model_description: EncodedModelDescription


class StartFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Loading failed for a reason that another try would meet again."""

    reason: str
    start_failure: EncodedStartFailure | None = None  # where another attempt may do without it


class SequenceFailed(msgspec.Struct, frozen=True, array_like=True):
    """One sequence ended without an answer; `engine.outputs.SequenceFailure` in plain values."""

    sequence_id: int
    kind: str  # the error's class, of those in `engine.errors`
    message: str
    retry_after_s: float | None = None  # of a QueueFullError

    @classmethod
    def of(cls, sequence_id: int, error: EngineError) -> SequenceFailed:
        retry_after_s = error.retry_after_s if isinstance(error, QueueFullError) else None
        return cls(sequence_id, type(error).__name__, str(error), retry_after_s)

    @property
    def error(self) -> EngineError:
        if self.retry_after_s is not None:
            return QueueFullError(self.message, retry_after_s=self.retry_after_s)
        return _ERRORS.get(self.kind, EngineError)(self.message)


class StepReport(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What one step gave, and how things stand after it."""

    tokens: list[TokenOutput]
    prompt_logprobs: list[PromptLogprobs]  # come before their sequence's first token
    started: list[SequenceStarted]  # these, too
    failures: list[SequenceFailed]
    work_number: int  # of the last `Work` taken in
    statistics: EngineStatistics
    accepted: list[int] = []  # sequence ids: those of which a grammar was read, once each


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine's process lives."""

    step_s: float  # how long the step under way has been running; 0 between steps


class IntegrityReport(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Whether the engine's accounting is right."""

    is_idle: bool  # only then all that was handed out must be back
    problem: str | None  # None where all is well


class LiveCheckReport(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """How far the live check has come; sent now and then."""

    statistics: LiveCheckStatistics


class LiveCheckFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The live check found a layer that computes wrongly; nothing follows."""

    reason: str  # names the layer and its kernel
    start_failure: EncodedStartFailure | None = None  # what the next engine may do without


class EngineFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine met an error that it does not survive; nothing follows."""

    reason: str


EngineEvent: TypeAlias = (
    Progress
    | Ready
    | StartFailed
    | StepReport
    | Heartbeat
    | IntegrityReport
    | LiveCheckReport
    | LiveCheckFailed
    | EngineFailed
)

_ERRORS: dict[str, type[EngineError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, EngineError) and kind is not QueueFullError
}

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(EngineCommand).decode
decode_event = msgspec.msgpack.Decoder(EngineEvent).decode
