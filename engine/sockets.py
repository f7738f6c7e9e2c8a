"""The two ends of the local socket between a client and its engine.

One pair of sockets for each life of an engine, with a random name that nobody else can open, so
that nothing said to one engine can reach the next. Orders go one way, tidings the other; neither
end ever waits for the other to read.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from engine.wire import LookAround, decode_order, decode_tidings, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.wire import Order, Tidings

    Context = zmq.Context[zmq.Socket[bytes]]

_ORDERS, _TIDINGS = "orders", "tidings"
_LAST_WORDS_MS = 1000  # how long a closing engine waits until what it said last has been written


class ClientSockets:
    """The client's end: listens until its engine has come; belongs to one thread."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tetrad-"))  # 0700
        context: Context = zmq.Context.instance()
        self._orders = _listen(context, zmq.PUSH, self.folder / _ORDERS)
        self._tidings = _listen(context, zmq.PULL, self.folder / _TIDINGS)
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

    def remove_names(self) -> None:
        """Take the names out of the file system, now that nobody else is to come."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close; what was not sent yet is dropped."""
        self._orders.close(linger=0)
        self._tidings.close(linger=0)
        self.remove_names()


class EngineSockets:
    """The engine's end; belongs to one thread."""

    def __init__(self, folder: Path) -> None:
        context: Context = zmq.Context.instance()
        # In this order: what the client hears of proves that its orders arrive, too.
        self._orders = _connect(context, zmq.PULL, folder / _ORDERS)
        self._tidings = _connect(context, zmq.PUSH, folder / _TIDINGS)
        self._own_address = f"inproc://{folder.name}"
        self._orders.bind(self._own_address)

    def send(self, tidings: Tidings) -> None:
        """Tell the client something."""
        self._tidings.send(encode(tidings))

    def wake(self) -> None:
        """Have `receive` return; from any thread."""
        socket = _socket(zmq.Context.instance(), zmq.PUSH)
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
        self._tidings = _connect(zmq.Context.instance(), zmq.PUSH, folder / _TIDINGS)

    def send(self, tidings: Tidings) -> None:
        """Tell the client something."""
        self._tidings.send(encode(tidings))

    def close(self) -> None:
        """Close; what was not sent yet is dropped."""
        self._tidings.close(linger=0)


def _listen(context: Context, kind: int, path: Path) -> zmq.Socket[bytes]:
    socket = _socket(context, kind)
    socket.bind(f"ipc://{path}")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)  # nobody could reach into the folder meanwhile
    return socket


def _connect(context: Context, kind: int, path: Path) -> zmq.Socket[bytes]:
    socket = _socket(context, kind)
    socket.connect(f"ipc://{path}")
    return socket


def _socket(context: Context, kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    # Without bounds: neither end may be held up by the other. What can be on its way is bounded by
    # the queue's limit and by the sequences that run.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket
