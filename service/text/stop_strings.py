"""Ends a text stream at a stop string, of which no part may reach a client.

Knows strings only. One character at a time through an Aho-Corasick automaton: its state is the
longest tail of the text that may still become a stop string, which is just what must be held back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from service.text.errors import InvalidStopStringError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class _State:
    """A prefix of some stop string, reached when the text ends with it."""

    depth: int  # its length
    stop: str | None = None  # the longest stop string the text now ends with
    next: dict[str, _State] = field(default_factory=dict)
    fallback: _State | None = None  # the longest shorter prefix the text also ends with


class StopStrings:
    """Cut a text stream at the first stop string.

    First is the one that is complete first, so that the answer doesn't depend on how the text was
    cut into pieces; of several complete at the same character, the longest. Time is linear in the
    text.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        """keep: whether the stop string that is found stays at the end of the text."""
        self._root = _automaton(tuple(stops))
        self._keep = keep
        self._state = self._root
        self._held = ""  # sent nowhere yet; ends with the state's prefix
        self.found: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """Take more text; give what is safe to send now. After a stop string was found: nothing."""
        if self.found is not None:
            return ""
        if not self._root.next:
            return text
        text = self._held + text
        for position in range(len(self._held), len(text)):
            self._state = self._step(text[position])
            if self._state.stop is not None:
                self.found, self._held = self._state.stop, ""
                end = position + 1
                return text[: end if self._keep else end - len(self.found)]
        safe = len(text) - self._state.depth
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """Give the rest, once the text has ended without a stop string."""
        rest, self._held = self._held, ""
        self._state = self._root
        return rest

    def _step(self, character: str) -> _State:
        state: _State | None = self._state
        while state is not None:
            if character in state.next:
                return state.next[character]
            state = state.fallback
        return self._root


# One request's choices share theirs: the largest takes 5 ms and a megabyte.
@lru_cache(maxsize=16)
def _automaton(stops: tuple[str, ...]) -> _State:
    root = _State(depth=0)
    for stop in stops:
        if not stop:
            raise InvalidStopStringError("a stop string is empty; give text to stop at, or none")
        state = root
        for character in stop:
            state = state.next.setdefault(character, _State(depth=state.depth + 1))
        state.stop = stop
    _link_fallbacks(root)
    return root


def _link_fallbacks(root: _State) -> None:
    """Link each state to its longest proper suffix that is a state too; shallow ones first."""
    waiting = deque([root])
    while waiting:
        parent = waiting.popleft()
        for character, state in parent.next.items():
            shorter = parent.fallback
            while shorter is not None and character not in shorter.next:
                shorter = shorter.fallback
            state.fallback = root if shorter is None else shorter.next[character]
            if state.stop is None:
                state.stop = state.fallback.stop
            waiting.append(state)
