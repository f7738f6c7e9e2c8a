"""What was typed in earlier sessions, for the arrow keys: a file of the user's own, and bounded.

One JSON text a line, as a typed line may hold line breaks where it was pasted. The file is read
again before it is replaced, so that two sessions lose nothing of each other's.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import SettingsError
from service.settings.files import read_text_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_LINES = 1000
MAX_CHARACTERS = 80_000  # in all of them; as JSON at most 12 bytes each, which the reader takes


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
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = _newest([*read_history(path), *lines])
    # Made for its owner alone (0600), and put in place whole.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
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
