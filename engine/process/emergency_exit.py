"""Ends an engine's process once its device is lost to it, before anything is cleaned up.

After an illegal access or the like every call to the device fails, and giving back what lies there
may hang. So the process says what happened and ends, from where the error was met: no frame is
left, no thread is joined but the heartbeat's. A new process has a device again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from typing import TYPE_CHECKING, NoReturn, Protocol

import structlog
import zmq

from engine.execution.device_faults import find_fault
from engine.transport.wire import EngineFailed

if TYPE_CHECKING:
    from engine.transport.sockets import EngineSockets

log = structlog.get_logger(__name__)

# If even saying so hangs. The timer is none of Python's, so no lock of Python's stops it; it ends
# the process with code 1, as an engine's that died.
LAST_RESORT_S = 3.0


class Stoppable(Protocol):
    """What holds a socket to the client beside the engine's own."""

    def stop(self) -> None:
        """Close it."""


class EmergencyExit:
    """Knows how this engine's process is ended at once."""

    def __init__(
        self, sockets: EngineSockets, heartbeat: Stoppable, *, exit_code: int | None
    ) -> None:
        """exit_code: None where the engine is a thread of a process that is not its own."""
        self._sockets = sockets
        self._heartbeat = heartbeat
        self._exit_code = exit_code

    def leave_on_fault(self, error: Exception) -> None:
        """Return only where the device is not lost by what the error tells.

        A thread of somebody else's process stands still instead, as one that hangs: its process
        has no device any more either, and whoever watches it ends it.
        """
        fault = find_fault(error)
        if fault is None:
            return
        if self._exit_code is not None:
            faulthandler.dump_traceback_later(LAST_RESORT_S, exit=True)
        log.error("device_lost", found=fault.kind, what_to_do=fault.advice, error=str(error))
        self._sockets.send(EngineFailed(f"the engine met {fault.kind}, and ended its process"))
        if self._exit_code is None:
            threading.Event().wait()
        else:
            self._leave(self._exit_code)

    def _leave(self, exit_code: int) -> NoReturn:
        self._heartbeat.stop()
        self._sockets.close()
        zmq.Context.instance().term()  # returns once the last event is out
        for handler in logging.getLogger().handlers:
            handler.flush()  # a thread may still have what was found in its hands
        os._exit(exit_code)
