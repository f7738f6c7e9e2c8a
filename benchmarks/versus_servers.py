"""A peer's processes in `versus`: started and timed, stopped while others are measured, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import httpx2 as httpx
import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

START_LIMIT_S = 600.0
END_LIMIT_S = 30.0
LOG_END = 1500  # characters
HOST = "127.0.0.1"


class StartError(RuntimeError):
    """A server did not become ready; the message has the end of its log."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


class ServerProcess:
    """One server and all processes that it started."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        self._log = log
        self._began = time.monotonic()
        with log.open("ab") as writable:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=writable,
                stderr=writable,
                start_new_session=True,
            )
        self._process = psutil.Process(self._popen.pid)

    def wait_ready(self, url: str) -> float:
        """Return the seconds from the start until a path answers 200.

        Raises StartError where the process ended before, or was not ready in time.
        """
        with httpx.Client(timeout=5) as client:
            while time.monotonic() < self._began + START_LIMIT_S:
                if self._popen.poll() is not None:
                    raise StartError(f"ended with {self._popen.returncode}; {self.end_of_log()}")
                with contextlib.suppress(httpx.TransportError):
                    if client.get(url).status_code == 200:
                        return time.monotonic() - self._began
                time.sleep(0.05)
        raise StartError(f"not ready in {START_LIMIT_S:.0f} s; {self.end_of_log()}")

    def end_of_log(self) -> str:
        """Return the last lines that the server wrote."""
        text = self._log.read_text(errors="replace").strip()
        return f"the end of its log:\n{text[-LOG_END:]}"

    def freeze(self) -> None:
        """Let none of the processes run, so that others have the machine to themselves."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all of the processes go on."""
        self._signal(signal.SIGCONT)

    def memory_mb(self) -> float:
        """Return the memory of all processes, shared pages by share, in units of 10**6 bytes."""
        used = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                used += process.memory_full_info().pss
        return used / 1e6

    def close(self) -> None:
        """End all processes, by force where the first does not end them of itself."""
        tree = self.processes()
        self.thaw()
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(END_LIMIT_S)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):  # what outlived a parent that failed
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(END_LIMIT_S)

    def processes(self) -> list[psutil.Process]:
        """List the processes, parents before their children."""
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
