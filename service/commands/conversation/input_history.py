"""What was typed in earlier sessions, for the arrow keys: a file of the user's own, and bounded.

One JSON text a line, as a typed line may hold line breaks where it was pasted. The file is read
again under a lock and replaced as a whole: two sessions lose nothing of each other's, and one that
is killed, at whatever moment, leaves the new file or the one before it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import SettingsError
from service.settings.files import read_text_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_LINES = 1000
MAX_CHARACTERS = 80_000  # in all of them; as JSON at most 12 bytes each, which the reader takes
MAX_WAIT_S = 5  # for another session, which takes milliseconds
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def history_file(environment: Mapping[str, str]) -> Path:
    """Return where the history lies: in the user's state folder."""
    state = environment.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "tetrad" / "chat_history"


def read_history(path: Path) -> list[str]:
    """Read the lines, oldest first; what is no line of ours is left out."""
    try:
        text = read_text_file(path, "history")
    except (SettingsError, UnicodeDecodeError):
        return []
    return [line for entry in text.split("\n") if isinstance(line := _read_entry(entry), str)]


def add_to_history(path: Path, lines: Sequence[str]) -> None:
    """Add lines, and drop the oldest ones beyond the bounds. Raises OSError."""
    from filelock import FileLock

    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(f"{path}.lock", timeout=MAX_WAIT_S, mode=0o600):
        _replace(path, _newest([*read_history(path), *lines]))


def _replace(path: Path, lines: Sequence[str]) -> None:
    """Write a file for its owner alone, put in place whole; the lock must be held."""
    fresh = path.with_name(f"{path.name}.new")  # always the same one, so that kills leave one
    fresh.unlink(missing_ok=True)
    try:
        with open(os.open(fresh, _NEW_FILE, 0o600), "w", encoding="ascii") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _newest(lines: Sequence[str]) -> list[str]:
    kept: list[str] = []
    room = MAX_CHARACTERS
    for line in reversed(lines[-MAX_LINES:]):
        room -= len(line) + 2
        if room < 0:
            break
        kept.append(line)
    return kept[::-1]


def _read_entry(entry: str) -> object:
    try:
        return json.loads(entry)
    except (ValueError, RecursionError):
        return None
