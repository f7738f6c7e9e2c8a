"""Keeps in a file what was chosen on which machine, so that the next start need not measure.

Losing it loses nothing that cannot be measured again: what cannot be read counts as absent, what
cannot be written is logged.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

FILE_NAME = "kernel-choices.json"
_FORMAT = 1
_MAX_BYTES = 1_000_000
_MAX_MACHINES = 16  # other versions, threads and masks count as others; the oldest go
_MAX_CHOICES = 256  # of one machine
_LOCK_S = 5


class KeptChoices:
    """The choices of one machine in a folder's file, beside those of others."""

    def __init__(self, folder: Path, machine: Mapping[str, str]) -> None:
        self._path = folder / FILE_NAME
        self._machine = dict(machine)
        self._is_unreadable_told = False

    def read(self) -> dict[str, object]:
        """Return what was chosen here, by name; nothing where the file tells of none."""
        for machine, choices in self._read_all():
            if machine == self._machine:
                return choices
        return {}

    def add(self, choices: Mapping[str, object]) -> None:
        """Keep choices, which JSON must be able to carry, beside those that are there."""
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{FILE_NAME}.lock", timeout=_LOCK_S):
                known = self._read_all()
                others = [entry for entry in known if entry[0] != self._machine]
                own = {
                    name: kept
                    for machine, of in known
                    if machine == self._machine
                    for name, kept in of.items()
                    if name not in choices
                }
                together = dict(list({**own, **choices}.items())[-_MAX_CHOICES:])
                self._replace([*others, (self._machine, together)][-_MAX_MACHINES:])
        except OSError as error:
            log.warning(
                "kernel_choices_not_kept",
                file=str(self._path),
                reason=str(error),
                consequence="the next start measures again",
            )

    def _read_all(self) -> list[tuple[dict[str, str], dict[str, object]]]:
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES} bytes")
            return _read_machines(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            self._tell_unreadable(error)
            return []

    def _tell_unreadable(self, error: Exception) -> None:
        """Say it once: the file is read again before it is replaced."""
        if not self._is_unreadable_told:
            self._is_unreadable_told = True
            log.warning(
                "kernel_choices_unreadable",
                file=str(self._path),
                reason=str(error),
                consequence="they are measured anew",
            )

    def _replace(self, machines: list[tuple[dict[str, str], dict[str, object]]]) -> None:
        content = {
            "format": _FORMAT,
            "machines": [{"machine": machine, "choices": choices} for machine, choices in machines],
        }
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{FILE_NAME}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                os.fchmod(file.fileno(), 0o644)  # 0600 would lock a shared cache's others out
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _read_machines(content: object) -> list[tuple[dict[str, str], dict[str, object]]]:
    """Read the file's content; raises ValueError where it is another's."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError("it is no file of choices, or another version's")
    entries = content.get("machines")
    if not isinstance(entries, list):
        raise ValueError("it lists no machines")
    machines = []
    for entry in entries:
        machine = entry.get("machine") if isinstance(entry, dict) else None
        choices = entry.get("choices") if isinstance(entry, dict) else None
        if not (isinstance(machine, dict) and isinstance(choices, dict)):
            raise ValueError("an entry names no machine or no choices")
        machines.append((machine, choices))
    return machines
