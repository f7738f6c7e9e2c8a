"""What an engine's process is told to try, and what it tells of the attempt while it loads.

Plain values that cross the process border; what follows from a failure is `service.ladder`'s to
decide.
"""

from __future__ import annotations

import enum

import msgspec


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One way to load a variant; the first attempt leaves everything to the settings."""

    variant: str | None = None  # chosen by an earlier engine of the same variant
    excluded_variants: tuple[str, ...] = ()  # failed; not to be chosen again
    excluded_backends: tuple[str, ...] = ()  # failed with this variant
    max_model_len: int | None = None  # no longer than this, whatever "auto" would be; tokens


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine tries, told as soon as it is known."""

    variant: str  # what is loaded, as `tetrad serve` takes it
    reason: str | None = None  # why it was chosen; None where the settings name it
    # Backends in use whose layers another one would run; in want of memory: with less of it.
    replaceable_backends: tuple[str, ...] = ()
    max_model_len: int | None = None  # tokens; None before the cache is sized

    def encode(self) -> bytes:
        """Write it down for the other process."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, encoded: bytes) -> Trial:
        """Read it again."""
        return msgspec.msgpack.decode(encoded, type=cls)


class Failure(enum.Enum):
    """Why an attempt failed where another may not; `EngineStartError.about` holds the value."""

    MEMORY = b"memory"
    SELF_TEST = b"self-test"
