"""Grammars that were read, kept for those who ask for them again.

Bounded by their number and by their size. The library does not tell what a grammar takes, so the
time that its reading took stands for that: it takes at most some 250 MB a second (2026-11).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from llguidance import LLMatcher

MAX_KEPT = 32
MAX_KEPT_S = 1.0  # of processor time that reading them took: some 250 MB


@dataclass(frozen=True, slots=True)
class _Kept:
    matcher: LLMatcher
    read_s: float


class KeptGrammars:
    """Matchers at their beginning, by their grammars; may be asked from several threads."""

    def __init__(self, max_kept: int = MAX_KEPT, max_kept_s: float = MAX_KEPT_S) -> None:
        self._max_kept = max_kept
        self._max_kept_s = max_kept_s
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # used last comes last
        self._lock = threading.Lock()  # never held while a grammar is read

    def copy_of(self, grammar: str, read: Callable[[], LLMatcher]) -> LLMatcher:
        """Return a matcher that is the caller's own; it is read unless it is kept.

        What cannot be read is not kept. Raises what `read` raises.
        """
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None:
                self._kept.move_to_end(grammar)
        if kept is None:
            began_at = time.thread_time()
            matcher = read()
            kept = _Kept(matcher, time.thread_time() - began_at)
            self._keep(grammar, kept)
        copy: LLMatcher = kept.matcher.deep_copy()
        return copy

    def drop(self, grammar: str) -> None:
        """Keep a grammar no longer."""
        with self._lock:
            self._kept.pop(grammar, None)

    def _keep(self, grammar: str, kept: _Kept) -> None:
        with self._lock:
            self._kept[grammar] = kept
            self._kept.move_to_end(grammar)
            while self._is_over():
                self._kept.popitem(last=False)

    def _is_over(self) -> bool:
        read_s = sum(kept.read_s for kept in self._kept.values())
        return len(self._kept) > self._max_kept or (bool(self._kept) and read_s > self._max_kept_s)
