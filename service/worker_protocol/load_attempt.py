"""What an engine's process is to try, and what it reports of the attempt while it loads.

Plain values that cross the process border; what follows from a failure is
`service.variants.fallback`'s to decide.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from engine.encoded import EncodedLoadAttempt, EncodedStartFailure
from loaders.reports.self_test import SelfTestReport

if TYPE_CHECKING:
    from engine.errors import EngineStartError, LiveCheckError


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One way to load a variant; the first attempt leaves everything to the settings."""

    variant: str | None = None  # chosen by an earlier engine of the same variant
    excluded_variants: tuple[str, ...] = ()  # failed; not to be chosen again
    excluded_backends: tuple[str, ...] = ()  # failed with this variant
    excluded_step_kernels: tuple[str, ...] = ()  # failed with this variant
    excludes_graphs: bool = False  # since a replay failed with this variant
    excludes_flash: bool = False  # attention of prompts, since it failed with this variant
    excludes_native: bool = False  # a CPU's C++ kernels, since they failed with this variant
    max_model_len: int | None = None  # no longer than this, whatever "auto" would be; tokens
    doubts_files: bool = False  # hash them whatever notes say, unless nobody wants any hashed


class FailureKind(enum.StrEnum):
    """Why an attempt failed, where another one may not."""

    MEMORY = "memory"
    SELF_TEST = "self-test"
    LIVE_CHECK = "live check"  # of an engine that had passed its self-test, and served
    STEP_TEST = "step test"  # of the engine's steps: their kernels, their graphs
    CANNOT_RUN = "cannot run"  # here: a kernel does not compile, or the device refuses it
    CRASH = "crash"  # the process ended while a part was tried for the first time


class StartFailure(msgspec.Struct, frozen=True):
    """What an engine that could not be started, or ended itself, tells for the next attempt."""

    kind: FailureKind
    backends: tuple[str, ...] = ()  # to be left out next time
    self_test: SelfTestReport | None = None  # where it was made
    step_kernels: tuple[str, ...] = ()  # to be left out next time
    graphs: bool = False  # whether they are to be left out next time
    detail: str | None = None  # what was found, in words an operator understands
    flash: bool = False  # whether flash attention is to be left out next time
    native: bool = False  # whether a CPU's C++ kernels are to be left out next time

    def encode(self) -> EncodedStartFailure:
        return EncodedStartFailure(msgspec.msgpack.encode(self))

    @classmethod
    def decode(cls, encoded: EncodedStartFailure) -> StartFailure:
        return msgspec.msgpack.decode(encoded, type=cls)

    @classmethod
    def of(cls, error: EngineStartError | LiveCheckError) -> StartFailure | None:
        """Read what an engine's error carries; None where no other attempt would do better."""
        return None if error.start_failure is None else cls.decode(error.start_failure)


class LoadAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine tries, reported as soon as it is known."""

    variant: str  # what is loaded, as `tetrad serve` takes it
    reason: str | None = None  # why it was chosen; None where the settings name it
    max_model_len: int | None = None  # tokens; None before the cache is sized
    # What its process's sudden end would mean now, while parts of it are tried for the first time:
    # one that crashed can name nobody any more.
    sudden_end: StartFailure | None = None

    def encode(self) -> EncodedLoadAttempt:
        return EncodedLoadAttempt(msgspec.msgpack.encode(self))

    @classmethod
    def decode(cls, encoded: EncodedLoadAttempt) -> LoadAttempt:
        return msgspec.msgpack.decode(encoded, type=cls)
