"""Reads the small files that settings name: regular ones, of a size that settings have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.checkpoint.regular_files import read_regular
from loaders.errors import CheckpointError
from service.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1_000_000


def read_text_file(path: Path, what: str, *, encoding: str = "utf-8") -> str:
    """Read a file; what: it is, for errors. Raises SettingsError, UnicodeDecodeError."""
    try:
        return read_regular(path, most=MAX_BYTES).decode(encoding)
    except CheckpointError as error:
        raise SettingsError(f"{what}: {error}") from error
