"""Tells the API's process what is tried, and what a sudden end would mean at each moment.

A kernel that reads where it may not ends the process, or leaves a device that answers nothing any
more. So before a part runs for the first time it is named as the one to blame; what merely raises
is blamed here, too, in words that say what to do.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError, EngineStartError
from engine.execution.device_faults import find_fault
from loaders.errors import LoadError
from loaders.memory.free import is_refused_allocation
from service.errors import ServiceError
from service.worker.kernel_faults import explain, explain_words
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, StartFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.encoded import EncodedLoadAttempt
    from engine.process.loop import ReportProgress

# Phases of loading in which linear kernels run for the first time.
_LINEARS_RUN = frozenset({"preparing kernels", "self-test"})
# A thread of the socket's writes what is told; a process that ends at once takes it along.
_UNTIL_WRITTEN_S = 0.05


class Attempt:
    """One attempt, as far as it has come; a `ReportProgress`."""

    def __init__(self, report_progress: ReportProgress, backends: tuple[str, ...]) -> None:
        """backends: linear kernels that loading may run for the first time."""
        self._report = report_progress
        self._linears = StartFailure(FailureKind.CRASH, backends) if backends else None
        self._known: LoadAttempt | None = None
        self._phase = ""

    def __call__(
        self,
        phase: str,
        percent: float | None = None,
        load_attempt: EncodedLoadAttempt | None = None,
    ) -> None:
        """Pass on what loading reports, with what its sudden end would mean."""
        if load_attempt is not None:
            self._known = LoadAttempt.decode(load_attempt)
            self._report(phase, percent, load_attempt)
        else:
            self._tell(phase, self._linears if phase in _LINEARS_RUN else None, percent)

    @contextmanager
    def first_run(self, phase: str, suspects: StartFailure) -> Iterator[None]:
        """Blame parts for whatever happens until the end of the block, but for lack of memory.

        Raises EngineStartError that says so.
        """
        self._tell(phase, msgspec.structs.replace(suspects, kind=FailureKind.CRASH))
        time.sleep(_UNTIL_WRITTEN_S)
        with self.blaming():
            yield
        self._tell(phase, None)

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Blame, for what happens until the end of the block, whoever is named at that moment."""
        try:
            yield
        except Exception as error:  # a compiler's and a driver's have no class in common
            suspects = None if self._known is None else self._known.sudden_end
            if suspects is None or not _is_blamed(error):
                raise
            words = explain(error)
            is_ours = isinstance(error, EngineError)  # a step ran, and gave what it must not
            kind = FailureKind.STEP_TEST if is_ours else FailureKind.CANNOT_RUN
            failure = msgspec.structs.replace(suspects, kind=kind, detail=words)
            raise EngineStartError(
                f"{self._phase}: {words}", start_failure=failure.encode()
            ) from error

    def _tell(
        self, phase: str, sudden_end: StartFailure | None, percent: float | None = None
    ) -> None:
        self._phase = phase
        if self._known is None or self._known.sudden_end == sudden_end:
            self._report(phase, percent)
            return
        self._known = msgspec.structs.replace(self._known, sudden_end=sudden_end)
        self._report(phase, percent, self._known.encode())


def _is_blamed(error: Exception) -> bool:
    """Whether an error speaks against what has just been tried."""
    if isinstance(error, EngineStartError):
        return error.start_failure is None
    if isinstance(error, (LoadError, EngineError, ServiceError)):
        return False  # has its own words, and no kernel's fault in them
    if explain_words(str(error)) is None and find_fault(error) is not None:
        return False  # the process ends at once, and what was told before it says whose fault it is
    return not is_refused_allocation(error)
