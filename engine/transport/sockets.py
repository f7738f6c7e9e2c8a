"""The two ends of the local socket between a client and its engine.

One pair of sockets for each life of an engine, with a random name that nobody else can open, so
that nothing said to one engine can reach the next. Commands go one way, events the other; neither
end ever waits for the other to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from engine.transport.wire import Wakeup, decode_command, decode_event, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.transport.wire import EngineCommand, EngineEvent

_COMMANDS, _EVENTS = "commands", "events"
# Of a folder for temporary files: two names of ours come behind it, and a socket's path has 107.
MAX_FOLDER_BYTES = 75
_CONNECTED, _DISCONNECTED = zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED
_LINGER_MS = 1000  # how long a closing engine waits until what it said last has been written


class ClientSockets:
    """The client's end: listens until its engine has come; belongs to one thread."""

    def __init__(self) -> None:
        """Raises OSError, as where no descriptors are left."""
        self.folder = Path(tempfile.mkdtemp(prefix="tetrad-", dir=_short_folder()))  # 0700
        opened: list[zmq.Socket[bytes]] = []
        try:
            opened.append(_socket(zmq.PUSH))
            opened.append(_socket(zmq.PULL))
            # From before the first one comes, so that none is missed.
            opened.append(opened[-1].get_monitor_socket(_CONNECTED | _DISCONNECTED))
            for socket, name in zip(opened, (_COMMANDS, _EVENTS), strict=False):
                _listen(socket, self.folder / name)
        except zmq.ZMQError as error:
            for socket in opened:
                socket.close(linger=0)
            self.unlink_sockets()
            raise OSError(error.errno, str(error)) from error
        self._commands, self._events, self._monitor = opened
        self._num_connected = self._num_disconnected = 0  # connections that bring events
        # Readable whenever something may have come; `receive` until it gives nothing any more.
        self.fileno = int(self._events.getsockopt(zmq.FD))
        self._stop_waiting: Callable[[], None] | None = None  # while somebody does, for the peer

    def send(self, command: EngineCommand) -> bool:
        """Send a command; False where no engine has come yet."""
        try:
            self._commands.send(encode(command), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self, limit: int) -> Iterator[EngineEvent]:
        """Give what has come, at most so much."""
        for _ in range(limit):
            try:
                message = self._events.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield decode_event(message)

    def peer_disconnected(self) -> bool:
        """Tell whether an engine was there and is gone: `receive` then gives all it ever sent.

        Its own end says less: what it sent may still be on its way between two sockets.
        """
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self._num_connected += event == _CONNECTED
            self._num_disconnected += event == _DISCONNECTED
        return 0 < self._num_connected == self._num_disconnected

    async def until_peer_disconnected(self, limit_s: float) -> None:
        """Wait until `peer_disconnected`, at most so long, or until these are closed."""
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        fileno = int(self._monitor.getsockopt(zmq.FD))  # readable once an engine came or went

        def look() -> None:
            if self.peer_disconnected():
                is_over.set()

        def stop() -> None:
            loop.remove_reader(fileno)
            self._stop_waiting = None
            is_over.set()

        loop.add_reader(fileno, look)
        self._stop_waiting = stop
        try:
            look()  # it may have gone before, and nothing tells of that twice
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await is_over.wait()
        finally:
            if self._stop_waiting is stop:
                stop()

    def unlink_sockets(self) -> None:
        """Take the names out of the file system, now that nobody else is to come."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close; what was not sent yet is dropped."""
        if self._stop_waiting is not None:
            self._stop_waiting()
        self._commands.close(linger=0)
        self._events.disable_monitor()
        self._monitor.close(linger=0)
        self._events.close(linger=0)
        self.unlink_sockets()


class EngineSockets:
    """The engine's end; belongs to one thread, but for `send` and `wake`."""

    def __init__(self, folder: Path) -> None:
        # Commands first, so that whoever sends events can already receive them.
        self._commands = _connect(zmq.PULL, folder / _COMMANDS)
        self._events = _connect(zmq.PUSH, folder / _EVENTS)
        self._lock = threading.Lock()
        self._own_address = f"inproc://{folder.name}"
        self._commands.bind(self._own_address)

    def send(self, event: EngineEvent) -> None:
        """Tell the client something; from any thread, as downloads have several."""
        with self._lock:  # sockets may change hands, but not be shared
            self._events.send(encode(event))

    def wake(self) -> None:
        """Have `receive` return; from any thread."""
        socket = _socket(zmq.PUSH)
        socket.connect(self._own_address)
        socket.send(encode(Wakeup()))
        socket.close()

    def receive(self, *, wait_s: float | None) -> Iterator[EngineCommand]:
        """Give the commands that have come; wait_s: for the first one, None as long as it takes."""
        if wait_s != 0:
            self._commands.poll(None if wait_s is None else math.ceil(wait_s * 1000))
        while True:
            try:
                message = self._commands.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield decode_command(message)

    def close(self) -> None:
        """Close, once the last events are on their way."""
        self._commands.close(linger=0)
        self._events.close(linger=_LINGER_MS)


class EventSocket:
    """One more way to tell the client something, for another thread of the engine's process."""

    def __init__(self, folder: Path) -> None:
        self._events = _connect(zmq.PUSH, folder / _EVENTS)

    def send(self, event: EngineEvent) -> None:
        self._events.send(encode(event))

    def close(self) -> None:
        """Close; what was not sent yet is dropped."""
        self._events.close(linger=0)


def prepare() -> None:
    """Start what all sockets share, while descriptors are there: libzmq aborts where they lack."""
    _socket(zmq.PAIR).close()


def _short_folder() -> str:
    """Return where temporary folders may be made whose sockets' paths are not too long."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= MAX_FOLDER_BYTES else "/tmp"


def _listen(socket: zmq.Socket[bytes], path: Path) -> None:
    socket.bind(f"ipc://{path}")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)  # nobody could reach into the folder meanwhile


def _connect(kind: int, path: Path) -> zmq.Socket[bytes]:
    socket = _socket(kind)
    socket.connect(f"ipc://{path}")
    return socket


def _socket(kind: int) -> zmq.Socket[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    socket = context.socket(kind)
    # Without bounds: neither end may be held up by the other. What can be on its way is bounded by
    # the queue's limit and by the sequences that run.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket
