"""The two ends of the local socket between a client and its engine.

One pair of sockets for each life of an engine, with a random name that nobody else can open, so
that nothing said to one engine can reach the next. Orders go one way, tidings the other; neither
end ever waits for the other to read.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from engine.transport.wire import LookAround, decode_order, decode_tidings, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.transport.wire import Order, Tidings

_ORDERS, _TIDINGS = "orders", "tidings"
# Of a folder for temporary files: two names of ours come behind it, and a socket's path has 107.
MAX_FOLDER_BYTES = 75
_COMINGS, _GOINGS = zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED
_LAST_WORDS_MS = 1000  # how long a closing engine waits until what it said last has been written


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
            opened.append(opened[-1].get_monitor_socket(_COMINGS | _GOINGS))
            for socket, name in zip(opened, (_ORDERS, _TIDINGS), strict=False):
                _listen(socket, self.folder / name)
        except zmq.ZMQError as error:
            for socket in opened:
                socket.close(linger=0)
            self.remove_names()
            raise OSError(error.errno, str(error)) from error
        self._orders, self._tidings, self._movements = opened
        self._num_come = self._num_gone = 0  # connections that bring tidings
        # Readable whenever something may have come; `receive` until it gives nothing any more.
        self.fileno = int(self._tidings.getsockopt(zmq.FD))

    def send(self, order: Order) -> bool:
        """Send an order; False where no engine has come yet."""
        try:
            self._orders.send(encode(order), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self, limit: int) -> Iterator[Tidings]:
        """Give what has come, at most so much."""
        for _ in range(limit):
            try:
                message = self._tidings.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield decode_tidings(message)

    def has_come_and_gone(self) -> bool:
        """Tell whether an engine was there and is gone: `receive` then gives all it ever sent.

        Its own end says less: what it sent may still be on its way between two sockets.
        """
        while self._movements.poll(0):
            event = recv_monitor_message(self._movements)["event"]
            self._num_come += event == _COMINGS
            self._num_gone += event == _GOINGS
        return 0 < self._num_come == self._num_gone

    def remove_names(self) -> None:
        """Take the names out of the file system, now that nobody else is to come."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close; what was not sent yet is dropped."""
        self._orders.close(linger=0)
        self._tidings.disable_monitor()
        self._movements.close(linger=0)
        self._tidings.close(linger=0)
        self.remove_names()


class EngineSockets:
    """The engine's end; belongs to one thread, but for `send` and `wake`."""

    def __init__(self, folder: Path) -> None:
        # In this order, so that whoever is heard of can be told things, too.
        self._orders = _connect(zmq.PULL, folder / _ORDERS)
        self._tidings = _connect(zmq.PUSH, folder / _TIDINGS)
        self._lock = threading.Lock()
        self._own_address = f"inproc://{folder.name}"
        self._orders.bind(self._own_address)

    def send(self, tidings: Tidings) -> None:
        """Tell the client something; from any thread, as downloads have several."""
        with self._lock:  # sockets may change hands, but not be shared
            self._tidings.send(encode(tidings))

    def wake(self) -> None:
        """Have `receive` return; from any thread."""
        socket = _socket(zmq.PUSH)
        socket.connect(self._own_address)
        socket.send(encode(LookAround()))
        socket.close()

    def receive(self, *, wait: bool) -> Iterator[Order]:
        """Give the orders that have come; wait: until there is at least one."""
        flags = 0 if wait else zmq.NOBLOCK
        while True:
            try:
                message = self._orders.recv(flags)
            except zmq.Again:
                return
            yield decode_order(message)
            flags = zmq.NOBLOCK

    def close(self) -> None:
        """Close, once the last tidings are on their way."""
        self._orders.close(linger=0)
        self._tidings.close(linger=_LAST_WORDS_MS)


class TidingsSocket:
    """One more way to tell the client something, for another thread of the engine's process."""

    def __init__(self, folder: Path) -> None:
        self._tidings = _connect(zmq.PUSH, folder / _TIDINGS)

    def send(self, tidings: Tidings) -> None:
        """Tell the client something."""
        self._tidings.send(encode(tidings))

    def close(self) -> None:
        """Close; what was not sent yet is dropped."""
        self._tidings.close(linger=0)


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
