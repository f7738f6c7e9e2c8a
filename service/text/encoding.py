"""Encodes texts for a limited time, and lives on where a tokenizer never comes to an end.

What splits texts into words are expressions that came with a checkpoint. Some take years for a text
that nobody tried when it was loaded (`loaders.checkpoint.tokenizer_trial`), and nothing ends a call
into the library but its process. So each runs in a thread of its own, without Python's lock, that
is left behind when its time is up: its request gets an error, all others go on. While a tokenizer
has too many texts that it never finished, it gets no more, so that it cannot take every core.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from loaders.checkpoint.rust_panics import is_panic
from service.text.errors import TokenizerFailedError, broken_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Processor time of one text's thread, so that a busy machine changes nothing. Real tokenizers take
# about 1 s for a million characters (2026-11).
LIMIT_S = 2.0
CHARACTER_LIMIT_S = 5e-6  # more for each character
MAX_UNFINISHED = 2  # texts of one tokenizer; each keeps a core busy
_LOOK_S = 0.05  # how often the time is looked at; who is done is heard at once

_unfinished: dict[int, int] = {}  # by the tokenizer's id, which its threads keep alive
_lock = threading.Lock()


def encode_in_time(backend: Tokenizer, text: str) -> list[int]:
    """Encode a text, special pieces parsed, nothing added; blocks the calling thread meanwhile.

    Raises TokenizerFailedError where the library breaks, the time is up,
    or the tokenizer has not come to an end with earlier texts.
    """
    num_unfinished = _unfinished.get(id(backend), 0)
    if num_unfinished >= MAX_UNFINISHED:
        raise TokenizerFailedError(
            f"the model's tokenizer is still busy with {num_unfinished} texts that it should have"
            " finished long ago; send token ids, or have the model loaded anew"
        )
    limit_s = LIMIT_S + CHARACTER_LIMIT_S * len(text)
    call = _Call(backend, text)
    call.start()
    while not call.is_done.wait(_LOOK_S):
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

    def __init__(self, backend: Tokenizer, text: str) -> None:
        super().__init__(name="encode", daemon=True)  # one that never ends keeps no process
        self.is_done = threading.Event()
        self.ids: list[int] = []
        self.error: Exception | None = None
        self._backend = backend
        self._text = text
        self._is_given_up = False

    def run(self) -> None:
        """Encode; what breaks is kept for who waits."""
        try:
            # Of a batch, since `encode` keeps Python's lock (tokenizers 0.23).
            (encoded,) = self._backend.encode_batch([self._text], add_special_tokens=False)
            self.ids = encoded.ids
        except BaseException as error:  # nobody else hears of it
            self.error = _as_failure(error)
        with _lock:
            self.is_done.set()
            if self._is_given_up:
                _count(self._backend, -1)

    def seconds(self) -> float:
        """Processor time of the thread so far; 0 once it has ended."""
        if self.ident is None or not self.is_alive():
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self.ident))

    def give_up(self) -> bool:
        """Count it as unfinished; False where it has just come to its end."""
        with _lock:
            if self.is_done.is_set():
                return False
            self._is_given_up = True
            _count(self._backend, 1)
            return True


def _as_failure(error: BaseException) -> Exception:
    if is_panic(error):
        return broken_tokenizer(str(error))
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)


def _count(backend: Tokenizer, change: int) -> None:
    left = _unfinished.get(id(backend), 0) + change
    if left:
        _unfinished[id(backend)] = left
    else:
        _unfinished.pop(id(backend), None)
