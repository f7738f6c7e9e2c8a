"""What this machine has learnt of a checkpoint, kept by commit: perplexity, memory, first tokens.

One small JSON file for each commit in the cache folder. Losing it loses nothing that cannot be
measured again, so what cannot be read counts as absent, and what cannot be written is logged.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from copy import copy
from pathlib import Path
from typing import Any

import structlog
from filelock import FileLock

from loaders.cache import default_cache_dir

log = structlog.get_logger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_MAX_BYTES = 1_000_000


class Records:
    """The records of one cache folder. `key` names what was measured, as in `perplexity`."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._folder = (cache_dir or default_cache_dir()) / "records"
        self._file: str | None = None

    def of(self, file: str | None) -> Records:
        """Return the records of one file, where a commit holds several variants (GGUF)."""
        scoped = copy(self)
        scoped._file = file
        return scoped

    def read(self, commit: str | None, key: str) -> Any:
        """Return what was recorded; None where nothing was, or the commit is unknown."""
        return self._entries(commit).get(self._scoped(key)) if _is_usable(commit) else None

    def write(self, commit: str | None, key: str, value: Any) -> None:
        """Record a value that JSON can carry; nothing is kept of what has no commit."""
        if commit is None or not _is_usable(commit):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / f".{commit}.lock"):
                self._replace(commit, {**self._entries(commit), self._scoped(key): value})
        except OSError as error:
            log.warning("record_not_written", commit=commit, key=key, reason=str(error))

    def _scoped(self, key: str) -> str:
        return key if self._file is None else f"{key} of {self._file}"

    def _path(self, commit: str) -> Path:
        return self._folder / f"{commit}.json"

    def _entries(self, commit: str | None) -> dict[str, Any]:
        path = self._path(str(commit))
        try:
            if path.stat().st_size > _MAX_BYTES:
                return {}
            entries = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _replace(self, commit: str, entries: dict[str, Any]) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=f".{commit}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entries, file)
        Path(name).replace(self._path(commit))


def _is_usable(commit: str | None) -> bool:
    return commit is not None and _COMMIT.fullmatch(commit) is not None
