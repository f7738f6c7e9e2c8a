"""Matches layers' names against a checkpoint's own patterns, in time that the checkpoint can't set.

The patterns come from a stranger's settings, and Python's `re` takes time exponential in a name's
length for some of them, as `(a+)+$`; RE2 (google-re2) takes time linear in it. Patterns are written
for Python, and what both read means the same here, with these differences:

- Looking ahead or behind and references back are refused, and so are `*+`, `(?#…)` and `(?x)`.
- `{n}` counts to 1 000 at most. `{,n}` and `\\Z` are put into RE2's words before it reads them.
- `\\d`, `\\w`, `\\s` and `\\b` know ASCII alone; `$` is the very end, also before a line break.
- `[[:alpha:]]`, `\\pL`, `\\Q…\\E` and `\\C` have a meaning of RE2's own.

Numbers, lengths and the time of a whole checkpoint are bounded.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import re2

from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

# A rule for each layer of the largest models, by its whole name, is below all of these.
MAX_PATTERNS = 4096
MAX_PATTERN_CHARACTERS = 1000
MAX_NAME_CHARACTERS = 512
# Of this thread, for one checkpoint: reading the patterns and all comparisons. 280 layers against
# 560 patterns of auto-round take 0.5 s on one core (November 2026).
MAX_SECONDS = 10.0
# For one pattern and its automaton; RE2 takes the slower, still linear way where it is too little.
_PATTERN_BYTES = 1 << 18
# Escapes and classes are stepped over whole, so that what looks like a count inside them stays.
_PYTHONS_OWN = re.compile(
    r"(?P<escape>\\.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|\{,(?P<most>\d*)\}", re.DOTALL
)


class NamePatterns:
    """Patterns in their order; the first that matches a name counts.

    Raises CheckpointError where one cannot be read, or there are too many.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(patterns)
        if len(self._patterns) > MAX_PATTERNS:
            raise CheckpointError(
                f"the quantisation has {len(self._patterns)} rules; at most {MAX_PATTERNS} are read"
            )
        self._seconds_left = MAX_SECONDS
        started = time.thread_time()
        self._compiled = [(pattern, _compile(pattern)) for pattern in self._patterns]
        self._spend(started)
        self._known: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """Return the first pattern that matches from the name's start, None where none does."""
        if name not in self._known:
            if len(name) > MAX_NAME_CHARACTERS:
                raise CheckpointError(
                    f"the layer {name[:60]!r}… has a name of {len(name)} characters; at most"
                    f" {MAX_NAME_CHARACTERS} are compared with the quantisation's rules"
                )
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> str | None:
        started = time.thread_time()
        text = name.encode(errors="surrogatepass")  # JSON may name a layer by no character
        found = (pattern for pattern, compiled in self._compiled if compiled.match(text))
        first = next(found, None)
        self._spend(started)
        return first

    def _spend(self, started: float) -> None:
        self._seconds_left -= time.thread_time() - started
        if self._seconds_left < 0:
            raise CheckpointError(
                f"the quantisation's {len(self._patterns)} rules are too many or too complex for"
                " this checkpoint's layers; name layers by shorter patterns"
            )


def check_pattern(pattern: str) -> None:
    """Raise CheckpointError, with the reason, for a pattern that is not read here."""
    _compile(pattern)


def _compile(pattern: str) -> re2._Regexp:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise CheckpointError(
            f"the pattern {pattern[:60]!r}… has {len(pattern)} characters; at most"
            f" {MAX_PATTERN_CHARACTERS} are read"
        )
    options = re2.Options()
    options.log_errors, options.never_capture = False, True
    options.max_mem = _PATTERN_BYTES
    try:
        return re2.compile(_PYTHONS_OWN.sub(_in_words_of_re2, pattern).encode(), options)
    except (re2.error, UnicodeEncodeError) as error:
        raise CheckpointError(
            f"the pattern {pattern[:200]!r} is not read here: {_reason(error)}"
        ) from error


def _in_words_of_re2(found: re.Match[str]) -> str:
    if found["escape"] is not None:
        return r"\z" if found["escape"] == r"\Z" else found["escape"]
    return found["set"] or f"{{0,{found['most']}}}"


def _reason(error: Exception) -> str:
    """Give RE2's reason; it comes as bytes."""
    told = error.args[0] if error.args else ""
    return told.decode(errors="replace") if isinstance(told, bytes) else str(error)
