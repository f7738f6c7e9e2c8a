"""What a check found, as `tetrad doctor` prints it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # it works, less well or less surely
    FIX = "fix"  # a server would not start, or not serve


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    name: str
    level: Level
    found: str
    command: str | None = None  # what mends it


def ok(name: str, found: str) -> Finding:
    """Say that nothing is wrong."""
    return Finding(name, Level.OK, found)


def warning(name: str, found: str, command: str | None = None) -> Finding:
    """Say what is not as it might be."""
    return Finding(name, Level.WARNING, found, command)


def fix(name: str, found: str, command: str) -> Finding:
    """Say what must be mended, and how."""
    return Finding(name, Level.FIX, found, command)
