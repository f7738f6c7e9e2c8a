"""The program that reads grammars before anybody follows them, run by `reading`.

A grammar can make the library overflow its stack, or work and take memory without end, in ways that
no check foresees. So each is read in a process of its own, forked from this one (3 ms), whose
processor time, memory and stack are limited, and which ends with its answer: nothing that one
grammar does is left for the next. Imports only the library and the standard library.

One line per grammar: {"grammar", "limits", "slices", "cpu_s", "niceness"}, answered {"refused":
what the library says, or null}, or {"ended": number of the signal} where the reading went past a
limit; the number is 0 where it could not even begin.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import resource
import signal
import sys
import threading
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Beyond what this process has. The largest schema that may be sent takes 10 MB (2026-11).
MAX_MEMORY_BYTES = 48 * 1024**2
# Those that read the same later have 8 MB, as systems give them and `worker.process` asks for.
# Rules that name each other take some 3 KB each, and schemas 9.
STACK_BYTES = 2 * 1024**2
NUM_STEPS = 16  # that are tried
MAX_TOLD = 512 * 1024  # characters of what the library says, which may repeat a pattern twice
# A token that a grammar names by its id, or by its name.
_ID = "<["
_NAME = re.compile(r"<[^<>\s\[\]\"]{1,100}>")
MAX_NAMES = 1000
NUM_IDS = 1 << 18  # vocabularies have no more (Gemma's)
_PR_SET_PDEATHSIG = 1


class Alphabet:
    """A vocabulary of single bytes, as the library wants it."""

    bos_token_id = None
    eos_token_id = 256

    def __init__(self, names: Sequence[str] = (), num_ids: int = 0) -> None:
        """names: of tokens of its own; num_ids: how many further ids there are, which say nothing.

        The ids of names are none that any model has, but that makes no difference to reading.
        """
        self.tokens = [bytes([value]) for value in range(256)] + [b"<eos>"]
        self.tokens += [name.encode() for name in names]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.tokens += [b""] * num_ids

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None)
    gc.freeze()  # what a fork does not look at stays shared
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Made here, as those after will need it, too.
        vocabulary(tuple(request["slices"]), has_ids=_ID in request["grammar"])
        answer = in_fork(request, libc)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def in_fork(request: dict[str, Any], libc: ctypes.CDLL) -> bytes:
    """Read a grammar in a process that is gone afterwards; return the answer's line."""
    answers, answer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.close(answers)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                run(request, answer)
        finally:
            os._exit(0)
    os.close(answer)
    pieces = []
    while piece := os.read(answers, 1 << 16):
        pieces.append(piece)
    os.close(answers)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return json.dumps({"ended": os.WTERMSIG(status)}).encode()
    # Without a word from it, the machine has not let it read: that says nothing of the grammar.
    return b"".join(pieces) or json.dumps({"ended": 0}).encode()


def run(request: dict[str, Any], answer: int) -> None:
    """Read within limits, and write the answer's line; what goes past them ends this process."""
    limit_memory()
    os.nice(request["niceness"])
    # SIGPROF is left at its default, which ends the process wherever it is.
    signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
    told: list[str | None] = []

    def read() -> None:
        with ended_for_want_of_memory():
            told.append(refusal(request))

    with ended_for_want_of_memory():
        threading.stack_size(STACK_BYTES)
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        if told:
            os.write(answer, json.dumps({"refused": told[0]}).encode())


@contextmanager
def ended_for_want_of_memory() -> Iterator[None]:
    """End this process as the library does where there is no memory left."""
    try:
        yield
    except MemoryError:
        os.kill(os.getpid(), signal.SIGABRT)


def limit_memory() -> None:
    """Bound what is taken beyond what this process has."""
    with open("/proc/self/statm", "rb") as numbers:
        pages = int(numbers.read().split()[0])
    most = pages * resource.getpagesize() + STACK_BYTES + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def refusal(request: dict[str, Any]) -> str | None:
    """Do what an engine will do with a grammar, and return why it cannot; None where it can."""
    try:
        told = tried(request)
    except MemoryError:
        raise
    except BaseException as error:  # the library's own panics are no `Exception`
        told = f"{type(error).__name__}: {error}"
    return None if told is None else told[:MAX_TOLD]


def tried(request: dict[str, Any]) -> str | None:
    """Read a grammar, and follow it for some bytes; return what the library says against it."""
    grammar: str = request["grammar"]
    limits = LLParserLimits(**request["limits"])
    slices = tuple(request["slices"])
    has_ids = _ID in grammar
    matcher = LLMatcher(vocabulary(slices, has_ids=has_ids), grammar, limits=limits, log_level=0)
    if matcher.is_error() and "unknown special token" in matcher.get_error():
        names = sorted(set(_NAME.findall(grammar)))[:MAX_NAMES]
        named = LLTokenizer(TokenizerWrapper(Alphabet(names, NUM_IDS if has_ids else 0)), slices=[])
        matcher = LLMatcher(named, grammar, limits=limits, log_level=0)
    num_steps = 0 if matcher.is_error() else follow(matcher)
    # What one of many texts leads to, where nothing may follow, is not the end of all of them.
    if not matcher.is_error() or (num_steps and matcher.stop_reason() == "NoExtensionBias"):
        return None
    return matcher.get_error()


def follow(matcher: LLMatcher) -> int:
    """Take some steps, as an engine does; return how many it took."""
    for step in range(NUM_STEPS):
        mask = matcher.compute_bitmask()
        if matcher.is_stopped():  # by its end, or an error
            return step
        allowed = matcher.compute_ff_tokens()[:1] or allowed_tokens(mask)
        # Here and there among what may come, the same for the same grammar.
        if not allowed or not matcher.consume_token(allowed[step * 7 % len(allowed)]):
            return step
    return NUM_STEPS


def allowed_tokens(mask: bytes) -> list[int]:
    """Return the single bytes that a mask allows."""
    bits = int.from_bytes(mask[:32], "little")
    return [token_id for token_id in range(256) if bits >> token_id & 1]


@lru_cache(maxsize=4)
def vocabulary(slices: tuple[str, ...], *, has_ids: bool) -> LLTokenizer:
    """Return the alphabet as a vocabulary: in parts, as an engine's, where it has no further ids.

    With them it takes 0.1 s to make.
    """
    if has_ids:
        return LLTokenizer(TokenizerWrapper(Alphabet(num_ids=NUM_IDS)), slices=[])
    return LLTokenizer(TokenizerWrapper(Alphabet()), slices=list(slices))


if __name__ == "__main__":
    main()
