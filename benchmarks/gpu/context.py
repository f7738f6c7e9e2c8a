"""What a part is given: its device, and a file for what it finds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class CheckFailedError(Exception):
    """A part ran, and what it found is wrong."""


@dataclass(frozen=True, slots=True)
class Context:
    """One part's surroundings."""

    findings_file: Path
    is_dry: bool  # on the CPU, with sizes that only prove the program
    is_small: bool = False  # on the device, in the sizes of a dry run
    share: tuple[int, int] | None = None  # which of how many, in a process of several
    _findings: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Name the device to measure."""
        return "cpu" if self.is_dry else "cuda:0"

    @property
    def workspace(self) -> Path:
        """Name a folder that all parts of a run share; it goes when the run ends."""
        return self.findings_file.parent

    def save(self, **findings: Any) -> None:
        """Keep findings at once: whatever happens later, they are told.

        `summary` is the line that the table shows.
        """
        self._findings.update(findings)
        # Never half a file, should this process be ended here.
        written = self.findings_file.with_suffix(".part")
        written.write_text(json.dumps(self._findings))
        os.replace(written, self.findings_file)

    def tell(self, text: str) -> None:
        """Say what is being done."""
        print(text, flush=True)
