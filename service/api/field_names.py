"""Names of fields as they may be repeated to whoever sent them: only those a person would write."""

from __future__ import annotations

import re

_FIELD_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
UNSPEAKABLE = "(a name of other than 1 to 64 plain characters)"


def safe_name(name: str) -> str:
    """Return a field's name if it is one a person would write."""
    return name if _FIELD_NAME.fullmatch(name) else UNSPEAKABLE
