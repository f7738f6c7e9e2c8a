"""What came of looking at forms, remembered by what they are, the latest of them."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a form: why it is refused, or None where it is not."""

    refusal: str | None


class Findings:
    """Remembers findings; may be asked from several threads."""

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        """max_known: how many are kept; those asked for longest ago are forgotten."""
        self._max_known = max_known
        self._known: OrderedDict[bytes, Finding] = OrderedDict()  # asked for last comes last
        self._lock = threading.Lock()

    def get(self, form: str) -> Finding | None:
        """Return what came of a form; None where that is not known."""
        key = _key(form)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def remember(self, form: str, refusal: str | None) -> Finding:
        """Keep what came of a form, and return it."""
        key, finding = _key(form), Finding(refusal)
        with self._lock:
            self._known[key] = finding
            self._known.move_to_end(key)
            while len(self._known) > self._max_known:
                self._known.popitem(last=False)
        return finding


def _key(form: str) -> bytes:
    return hashlib.sha256(form.encode()).digest()
