"""Whether a grammar can be read, found out where it can do no harm.

Each is read in processes without our environment (see `reading_worker`) before an engine sees it:
first with the little time that nearly all need, so that nobody's waits for long behind those of
others; what takes longer, in another process, in which few may wait. What came of it is remembered.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from engine.errors import QueueFullError
from service.grammars.errors import InvalidGrammarError
from service.grammars.findings import MAX_KNOWN, Finding, Findings
from service.grammars.limits import PARSER_LIMITS, VOCABULARY_PARTS
from service.grammars.refusals import in_words
from service.line_process import LineProcess

if TYPE_CHECKING:
    from llguidance import LLParserLimits

log = structlog.get_logger(__name__)

WORKER = Path(__file__).with_name("reading_worker.py")
# Of processor time. A schema of ten properties takes 2 ms, the largest that may be sent 0.1 s, and
# clocks that count it tick every 4 ms (two cores of an AVX-512 server CPU, 2026-11).
SHORT_CPU_S, LONG_CPU_S = 0.02, 0.3
# Only a stopped or starved machine gets here.
WALL_S = 10.0
MAX_WAITING_LONG = 6  # beside the one that is being read
RETRY_AFTER_S = 2.0
_LIMITS = (
    "max_items_in_row",
    "initial_lexer_fuel",
    "step_lexer_fuel",
    "step_max_items",
    "max_lexer_states",
    "max_grammar_size",
    "verbose_errors",
)
_SMALLER = "send a smaller or flatter one"
# What a process is ended with that goes past its limits, as a sentence about a form goes on.
_ENDS = {
    signal.SIGPROF: f"takes too much time to read; {_SMALLER}",
    signal.SIGABRT: f"takes too much memory to read; {_SMALLER}",
    signal.SIGSEGV: f"is nested too deeply to be read; {_SMALLER}",
    signal.SIGBUS: f"is nested too deeply to be read; {_SMALLER}",
}


class GrammarReading:
    """Reads grammars, and knows those that were read; may be asked from several threads."""

    def __init__(
        self,
        *,
        short_cpu_s: float = SHORT_CPU_S,
        long_cpu_s: float = LONG_CPU_S,
        limits: LLParserLimits = PARSER_LIMITS,
        max_known: int = MAX_KNOWN,
    ) -> None:
        """Start nothing yet.

        short_cpu_s, long_cpu_s: of processor time, which a grammar is given at first, and then;
        max_known: of how many grammars it is remembered what came of them.
        """
        self._short = ReadingProcess(short_cpu_s, limits)
        # It gives way to engines, whose tokens many wait for.
        self._long = ReadingProcess(long_cpu_s, limits, niceness=5)
        self._known = Findings(max_known)
        self._lock = threading.Lock()
        self._num_long = 0

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        return [pid for each in (self._short, self._long) if (pid := each.pid) is not None]

    def require_readable(self, grammar: str) -> None:
        """Raise InvalidGrammarError where a grammar cannot be read within bounds.

        Raises QueueFullError where many wait whose reading takes long. Takes some 5 ms for most
        that are new, and a third of a second at most; no work for an event loop.
        """
        finding = self._known.get(grammar) or self._find_out(grammar)
        if finding.refusal is not None:
            raise InvalidGrammarError(finding.refusal)

    def close(self) -> None:
        """End the processes; who asks again starts them anew."""
        self._short.close()
        self._long.close()

    def _find_out(self, grammar: str) -> Finding:
        with self._short.lock:
            if (finding := self._known.get(grammar)) is not None:  # somebody else asked for it
                return finding
            refusal, is_over = self._short.read(grammar)
        if is_over:
            return self._read_long(grammar)
        return self._known.remember(grammar, refusal)

    def _read_long(self, grammar: str) -> Finding:
        with self._lock:
            if self._num_long > MAX_WAITING_LONG:
                raise QueueFullError(
                    f"{self._num_long} forms wait to be read that take long, at most"
                    f" {MAX_WAITING_LONG} may",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._num_long += 1
        try:
            with self._long.lock:
                if (finding := self._known.get(grammar)) is not None:
                    return finding
                return self._known.remember(grammar, self._long.read(grammar)[0])
        finally:
            with self._lock:
                self._num_long -= 1


class ReadingProcess:
    """A process that reads one grammar after another; starts when needed (some 0.2 s)."""

    def __init__(self, cpu_s: float, limits: LLParserLimits, *, niceness: int = 0) -> None:
        """cpu_s: how much processor time a grammar is given; niceness: to others (see nice(2))."""
        self.lock = threading.Lock()  # to be held while reading
        self._asked = {
            "limits": {name: getattr(limits, name) for name in _LIMITS},
            "slices": VOCABULARY_PARTS,
            "cpu_s": cpu_s,
            "niceness": niceness,
        }
        self._process: LineProcess | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def read(self, grammar: str) -> tuple[str | None, bool]:
        """Return why a grammar cannot be read, if so, and whether that is for want of time.

        Whoever is killed by somebody else is started once more. Raises QueueFullError where the
        machine lets no process read.
        """
        for _ in range(2):
            try:
                process = self._process = self._process or self._started()
            except OSError as error:
                raise QueueFullError(
                    "no process can be had that reads forms; the machine may lack memory,"
                    " processes or open files",
                    retry_after_s=RETRY_AFTER_S,
                ) from error
            answer = process.ask({**self._asked, "grammar": grammar})
            if answer is None:
                log.warning("form_reader_ended", reason=process.end().words)
                self._process = None
            elif "refused" in answer:
                told = answer["refused"]
                return (None if told is None else in_words(told)), False
            elif answer["ended"] in _ENDS:
                return _ENDS[answer["ended"]], answer["ended"] == signal.SIGPROF
            else:
                log.warning("form_reader_ended", reason=f"a form's by signal {answer['ended']}")
        raise QueueFullError(
            "the process that reads forms was ended; the machine may lack memory or time",
            retry_after_s=RETRY_AFTER_S,
        )

    def close(self) -> None:
        with self.lock:
            if self._process is not None:
                self._process.stop()
            self._process = None

    def _started(self) -> LineProcess:
        # One pool of memory for all threads: others would reserve more than may be taken.
        return LineProcess(WORKER, wall_s=WALL_S, environment={"MALLOC_ARENA_MAX": "1"})


_reading = GrammarReading()
require_readable = _reading.require_readable
