"""Renders chat templates that nobody vouches for.

A template is a program that came with a checkpoint. Jinja's sandbox keeps it from attributes and
calls that would lead to files or the network. It runs in `template_worker`, a process without our
environment, with limits on text, memory, written files and processor time; one that goes past them
costs its own process, which the next text starts anew (about 0.1 s), and never this one.
Not covered: what a template writes is up to it; a checkpoint's template may put anything into
prompts.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.line_process import Ending, LineProcess
from service.text.errors import (
    InvalidMessagesError,
    TemplateFailedError,
    TemplateInterruptedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKER = Path(__file__).with_name("template_worker.py")
# Our Llama 2 template takes 0.2 ms with all that is around it, 27 ms for 2 047 messages (2026-11).
CPU_S = 2.0
# Only a stopped or starved machine gets here: the worker ends itself by CPU_S.
WALL_S = 60.0
# Templates add markers, dates and default system texts to what they are given, and some repeat it.
EXTRA_CHARS = 64 * 1024
CHARS_PER_CHAR = 4
MAX_WORDS = 150  # characters of a template's own, which may be the messages'


class TemplateSandbox:
    """One template in a process of its own; may be used from several threads, one at a time."""

    names: frozenset[str]  # of the variables that the template reads and does not set itself

    def __init__(self, source: str, *, cpu_s: float = CPU_S) -> None:
        """Start the process; raises TemplateFailedError if the template does not compile."""
        self._source = source
        self._cpu_s = cpu_s
        self._lock = threading.Lock()
        self._worker: LineProcess | None = None
        self._worker, self.names = self._start()

    def render(self, variables: Mapping[str, Any], *, num_chars: int) -> str:
        """Render the template.

        variables: plain JSON values.
        num_chars: how much text they hold; the result may be `CHARS_PER_CHAR` times as long, and
        `EXTRA_CHARS` more.

        Raises InvalidMessagesError where the template refuses them by itself, TemplateFailedError
        where it breaks or goes past its limits, of that TemplateInterruptedError where its process
        was ended from outside.
        """
        max_chars = CHARS_PER_CHAR * num_chars + EXTRA_CHARS
        with self._lock:
            if self._worker is None:
                self._worker, _ = self._start()
            answer = self._ask(self._worker, variables=variables, max_chars=max_chars)
        return str(answer["text"])

    def close(self) -> None:
        """End the process; a later text would start it again."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
            self._worker = None

    def _start(self) -> tuple[LineProcess, frozenset[str]]:
        worker = LineProcess(WORKER, wall_s=WALL_S)
        answer = self._ask(worker, source=self._source)
        return worker, frozenset(answer["names"])

    def _ask(self, worker: LineProcess, **request: Any) -> dict[str, Any]:
        answer = worker.ask({**request, "cpu_s": self._cpu_s})
        if answer is None:
            self._worker = None
            raise _why(worker.end(), self._cpu_s)
        if "refused" in answer:
            raise InvalidMessagesError(
                f"the chat template refuses these messages: {answer['refused'][:MAX_WORDS]}"
            )
        if "failed" in answer:
            raise TemplateFailedError(f"the chat template failed: {answer['failed'][:MAX_WORDS]}")
        return answer


def _why(end: Ending, cpu_s: float) -> TemplateFailedError:
    """Say why a template's process has ended. cpu_s: what it was allowed."""
    if end.is_late:
        return TemplateInterruptedError(
            f"the chat template's process gave no answer within {WALL_S:.0f} s, and had less than"
            f" {cpu_s:g} s of the processor: this machine is too busy; try again"
        )
    if end.was_from_outside:
        return TemplateInterruptedError(
            f"the chat template's process was ended from outside by {end.signal_name}, as by a"
            " system without memory; try again"
        )
    return TemplateFailedError(
        f"the chat template was stopped: {end.words} (allowed: {cpu_s:g} s); the checkpoint's"
        " template needs mending"
    )
