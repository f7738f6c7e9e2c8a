"""Looks at what other processes are writing, or whether they still run, and bears that it changes.

A file may be renamed between the listing and the look, the last line of a log half written, and a
process gone from one moment to the next.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def partial_bytes(folder: Path) -> int:
    """Count the bytes of the unfinished files that a download left there, or is writing."""
    total = 0
    for path in folder.rglob("*.partial"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def whole_lines(log: Path) -> list[str]:
    """Return the lines of a log that are written to their end."""
    return [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def is_running(process_id: int) -> bool:
    """Whether a process is there that is no zombie."""
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
