"""What opening a variant gives: the folder of its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository, in a folder of its own."""

    folder: Path
    commit: str | None  # None for a plain local folder
    file: str | None = None  # of a GGUF variant: its file in the folder, the first where split
    clone: Path | None = None  # the git clone that the commit is of
