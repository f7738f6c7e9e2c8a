"""Encodes texts for a limited time, and lives on where a tokenizer never comes to an end.

What splits texts into words are expressions that came with a checkpoint. Some take years for a text
that nobody tried when it was loaded (`loaders.checkpoint.tokenizer_trial`), and nothing ends a call
into the library but its process. So each runs in a thread of its own, without Python's lock, that
is left behind when its time is up: its request gets an error, all others go on. As any text may be
such a one, a tokenizer has few under way at once; others wait for their turn. So it cannot take
every core, and once all that it has are given up, it gets no more. That long texts leave a turn to
short ones is the callers' part: `service.serving.text_lanes`.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from loaders.checkpoint.rust_panics import is_panic
from service.text.errors import (
    InvalidPromptError,
    TextTooLongError,
    TokenizerFailedError,
    broken_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Encoding, Tokenizer

# Processor time of one text's thread, so that a busy machine changes nothing. Real tokenizers take
# about 1 s for a million characters (2026-11).
LIMIT_S = 2.0
CHARACTER_LIMIT_S = 5e-6  # more for each character
# Texts of one tokenizer; each that never ends keeps a core busy.
MAX_AT_ONCE = max(2, min(4, len(os.sched_getaffinity(0)) // 2))
MAX_WHOLE = 64 * 1024  # characters; shorter texts are encoded whole, whatever is kept of them
CUT_MARGIN = 256  # tokens
# So many tokens too many are made into ids all the same: a prompt that has grown a little is
# refused by whoever knows how many there are with all that is put around it.
COUNTED_BEYOND = 4096
_POLL_S = 0.05  # how often the time is looked at; who is done is heard at once

_lock = threading.Lock()


class _Turns:
    """The texts of one tokenizer that are under way or wait; all under the lock."""

    def __init__(self) -> None:
        self.num_texts = 0
        self.num_running = 0
        self.num_given_up = 0  # of those
        self.changed = threading.Condition(_lock)


_turns: dict[int, _Turns] = {}  # by the tokenizer's id, which its texts keep alive


def encode_text(
    backend: Tokenizer, text: str, owner: Tokenizer | None = None, most_tokens: int | None = None
) -> list[int]:
    """Encode text as it stands, special pieces parsed, nothing added.

    owner: the tokenizer that `backend` is a copy of. most_tokens: as many as are of use.
    Raises InvalidPromptError for text with a lone surrogate, TextTooLongError where it has more
    tokens, TokenizerFailedError.
    """
    require_unicode(text)
    return encode_in_time(backend, text, owner, most_tokens)


def last_ids(
    encode: Callable[[str], list[int]], text: str, num_tokens: int
) -> tuple[list[int], str]:
    """Encode as much of a text's end as holds so many tokens; also return what was left out.

    The first ids come out otherwise than in the whole text; there are `CUT_MARGIN` more than asked
    for, where there are as many.
    """
    for size in _sizes(len(text), num_tokens):
        ids = encode(text[len(text) - size :])
        if len(ids) >= num_tokens + CUT_MARGIN:
            return ids, text[: len(text) - size]
    return encode(text), ""


def first_ids(
    encode: Callable[[str], list[int]], text: str, num_tokens: int
) -> tuple[list[int], str]:
    """Encode as much of a text's beginning as holds so many tokens; as `last_ids` does."""
    for size in _sizes(len(text), num_tokens):
        ids = encode(text[:size])
        if len(ids) >= num_tokens + CUT_MARGIN:
            return ids, text[size:]
    return encode(text), ""


def _sizes(num_characters: int, num_tokens: int) -> Iterator[int]:
    """Give the lengths of parts that may hold so many tokens, less than the whole text."""
    size = MAX_WHOLE + 2 * max(num_tokens, 0)
    while size < num_characters:
        yield size
        size *= 4


def require_unicode(text: str) -> None:
    """Raise InvalidPromptError for text with a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPromptError(
            f"the text has a lone surrogate at position {error.start}; send well-formed Unicode"
        ) from error


def well_formed(text: str) -> str:
    """Return a text of which a part may be encoded. Raises InvalidPromptError."""
    require_unicode(text)
    return text


def encode_in_time(
    backend: Tokenizer, text: str, owner: Tokenizer | None = None, most_tokens: int | None = None
) -> list[int]:
    """Encode a text, special pieces parsed, nothing added; blocks the calling thread meanwhile.

    owner: the tokenizer that `backend` is a copy of; they share their turns.
    most_tokens: as many as are of use. Raises TextTooLongError where there are far more,
    TokenizerFailedError where the library breaks, the time is up, or the tokenizer has not come to
    an end with earlier texts.
    """
    call = _Call(backend, text, backend if owner is None else owner, most_tokens)
    call.take_turn()
    try:
        return _wait_for(call, text)
    except BaseException:
        call.give_up()  # where nobody has
        raise


def _wait_for(call: _Call, text: str) -> list[int]:
    call.start()
    limit_s = LIMIT_S + CHARACTER_LIMIT_S * len(text)
    while not call.is_done.wait(_POLL_S):
        if call.seconds() > limit_s and call.give_up():
            raise TokenizerFailedError(
                f"the model's tokenizer was given up after {limit_s:.1f} s with this text of"
                f" {len(text)} characters; send another text, or token ids"
            )
    if call.error is not None:
        raise call.error
    return call.ids


class _Call(threading.Thread):
    """One text on its way through a tokenizer."""

    def __init__(
        self, backend: Tokenizer, text: str, owner: Tokenizer, most_tokens: int | None = None
    ) -> None:
        super().__init__(name="encode", daemon=True)  # one that never ends keeps no process
        self.is_done = threading.Event()
        self.ids: list[int] = []
        self.error: Exception | None = None
        self._backend = backend
        self._text = text
        self._owner = owner
        self._most_tokens = most_tokens
        self._clock: int | None = None
        self._is_given_up = False

    def take_turn(self) -> None:
        """Wait until few enough are under way; none comes to its turn where no other ends."""
        with _lock:
            turns = _turns.get(id(self._owner)) or _turns.setdefault(id(self._owner), _Turns())
            turns.num_texts += 1
            try:
                while turns.num_running >= MAX_AT_ONCE:
                    if turns.num_given_up >= MAX_AT_ONCE:
                        raise _still_busy(turns.num_given_up)
                    turns.changed.wait()
            except BaseException:
                self._leave(turns)
                raise
            turns.num_running += 1

    def run(self) -> None:
        """Encode; what breaks is kept for who waits."""
        # By the thread itself: of one that has ended, the id must not be asked.
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            # Of a batch, since `encode` keeps Python's lock; and without the places in the text,
            # which nobody asks for: 0.7 s for 2 MB where `encode_batch` takes 1.4 (tokenizers 0.23,
            # two cores, 2026-11).
            (encoded,) = self._backend.encode_batch_fast([self._text], add_special_tokens=False)
            self.ids = self._ids_of(encoded)
        except BaseException as error:  # nobody else hears of it
            self.error = _as_failure(error)
        self._end()

    def _ids_of(self, encoded: Encoding) -> list[int]:
        # As a list they hold Python's lock: 60 ns each.
        if self._most_tokens is not None and len(encoded) > self._most_tokens + COUNTED_BEYOND:
            raise TextTooLongError(
                f"the text has {len(encoded)} tokens, and at most {self._most_tokens} are of use"
            )
        return encoded.ids

    def start(self) -> None:
        """Start; where the system has no thread left, the turn is over."""
        try:
            super().start()
        except RuntimeError:
            self._end()
            raise

    def seconds(self) -> float:
        """Processor time of the thread so far; 0 before it has begun and once it has ended."""
        if self._clock is None:
            return 0.0
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it has just ended
            return 0.0

    def give_up(self) -> bool:
        """Count it as one that never ends; False where it has just come to its end."""
        with _lock:
            if self.is_done.is_set():
                return False
            if not self._is_given_up:
                self._is_given_up = True
                turns = _turns[id(self._owner)]
                turns.num_given_up += 1
                turns.changed.notify_all()  # who waits may do so in vain
            return True

    def _end(self) -> None:
        with _lock:
            self.is_done.set()
            turns = _turns[id(self._owner)]
            turns.num_running -= 1
            turns.num_given_up -= self._is_given_up
            self._leave(turns)

    def _leave(self, turns: _Turns) -> None:
        turns.changed.notify()
        turns.num_texts -= 1
        if turns.num_texts == 0:
            del _turns[id(self._owner)]


def _still_busy(num_texts: int) -> TokenizerFailedError:
    return TokenizerFailedError(
        f"the model's tokenizer is still busy with {num_texts} texts that it should have finished"
        " long ago; send token ids, or have the model loaded anew"
    )


def _as_failure(error: BaseException) -> Exception:
    if is_panic(error):
        return broken_tokenizer(str(error))
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
