"""The life of an engine's process: it loads what it is asked for, runs, and ends with its parent.

`python -m service.worker.process`, started by `service.variants.handles` and by nobody else. What
it loads is put together in `service.worker.build`, imported when the parent can already hear of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import msgspec
import zmq

from engine.process.loop import BuiltEngine, Ending, serve
from service.logs import FLUSH_LIMIT_S, set_up_logs
from service.observation.line_writer import LineWriter
from service.settings import DEMO_NAME, WorkerSettings
from service.worker_protocol.exit_codes import CANNOT_START, ENGINE_DIED
from service.worker_protocol.load_attempt import LoadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.process.loop import ReportProgress

EXIT_CODES = {Ending.STOPPED: 0, Ending.NOT_STARTED: CANNOT_START, Ending.DIED: ENGINE_DIED}
_PR_SET_PDEATHSIG = 1
# Of each thread; far more than a grammar needs that could be read (`service.grammars.reading`).
STACK_BYTES = 8 * 1024**2


def main(build: Callable[[WorkerSettings, LoadRequest, ReportProgress], BuiltEngine]) -> NoReturn:
    """Read the sockets' folder and the settings from standard input; serve until it is to end.

    Does not return: threads of a device's library must not keep a process that has no engine.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C and a container's stop reach the whole group; when to end is the API's to say.
        signal.signal(number, signal.SIG_IGN)
    threading.stack_size(STACK_BYTES)
    faulthandler.enable()  # a crash, and SIGABRT to one that hangs, leave a trace in the log
    start = json.loads(sys.stdin.buffer.readline())
    end_with_parent(start["parent"], sys.stdin.buffer)
    settings = WorkerSettings(**start["settings"])
    load_request = msgspec.convert(start["load_request"], LoadRequest)
    # A step that logs must not wait for whoever reads: an engine that stands still counts as hung.
    writer = LineWriter(sys.stderr)
    name = settings.served_model_name or settings.variant or DEMO_NAME
    set_up_logs(settings, writer=writer, engine=name)
    ending = serve(
        Path(start["folder"]),
        partial(build, settings, load_request),
        fault_exit_code=ENGINE_DIED,
    )
    zmq.Context.instance().term()  # returns once the last event is out
    writer.flush(FLUSH_LIMIT_S)
    os._exit(EXIT_CODES[ending])


def end_with_parent(parent: int, stdin: BinaryIO) -> None:
    """See to it that this process does not outlive the one that started it."""
    if sys.platform == "linux":
        # Works while a step holds on to everything, and Python cannot notice anything.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ENGINE_DIED)
    threading.Thread(target=_end_after, args=(stdin,), name="parent", daemon=True).start()


def _end_after(stdin: BinaryIO) -> None:
    """End the process when its standard input ends, which its parent holds open."""
    with contextlib.suppress(OSError):
        while stdin.read(1):
            pass
    os._exit(ENGINE_DIED)


def build(
    settings: WorkerSettings, load_request: LoadRequest, report_progress: ReportProgress
) -> BuiltEngine:
    """Build the engine that the settings ask for."""
    report_progress("starting")
    from service.worker.build import build_engine  # takes seconds to import

    return build_engine(settings, load_request, report_progress)


if __name__ == "__main__":
    main(build)
