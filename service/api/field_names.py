"""Names of fields as they may be repeated to whoever sent them: those a person would write, few."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_REPEATED = 200  # characters of names in one error, in its message and beside it
_MAX_PATH = MAX_REPEATED // 2 - 4  # a path stands in the message and beside it; 4: its mark
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
UNSPEAKABLE = "(a name of other than 1 to 64 plain characters)"


def safe_name(name: str) -> str:
    """Return a field's name if it is one a person would write."""
    return name if _FIELD_NAME.fullmatch(name) else UNSPEAKABLE


def safe_path(parts: Iterable[str]) -> str:
    """Return the way to a field as far as it is short enough; each part as `safe_name` has it."""
    path = ""
    for part in map(safe_name, parts):
        if path and len(path) + len(part) >= _MAX_PATH:
            return f"{path}..."
        path = f"{path}.{part}" if path else part
    return path


def num_repeatable(names: Iterable[str], param: str | None) -> int:
    """Count the first names that may be repeated beside param in one error; one at least."""
    num_characters = len(param or "")
    count = 0
    for name in names:
        num_characters += len(name)
        if count and num_characters > MAX_REPEATED:
            break
        count += 1
    return count
