"""Requests that wait on one connection for the answer of one before them: few, and small in sum.

Reading goes on while one is answered, as else a client that leaves would not be noticed; so what
comes meanwhile has to be bounded here. In which order they are answered is the protocol's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from service.server.refusals import malformed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.server.request_head import RequestHead
    from service.server.response_cycle import ResponseCycle

MAX_REQUESTS = 64
MAX_BODY = 64 * 1024  # bytes, of one of them
MAX_SIZE = 256 * 1024  # bytes of all of them, with what it takes to keep them
_REQUEST_SIZE = 2048  # bytes that one takes beside what was sent, about
_HEADER_SIZE = 128  # bytes that a header does


class Pipeline:
    """What waits on one connection."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[ResponseCycle, int]] = deque()  # and its head's size
        self._size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[ResponseCycle]:
        return (cycle for cycle, _ in self._waiting)

    def add(self, cycle: ResponseCycle, head: RequestHead) -> None:
        """Have a request wait, whose body may still be to come. Raises Refusal; then it doesn't."""
        size = _size_of(head)
        if len(self._waiting) >= MAX_REQUESTS:
            raise malformed(f"more than {MAX_REQUESTS} requests wait on this connection")
        self._require_room(size)
        # It is read without a "100 Continue": while one was owed, no deadline would hold its body.
        cycle.waiting_for_100_continue = False
        self._waiting.append((cycle, size))
        self._size += size

    def add_body(self, cycle: ResponseCycle, part: bytes) -> None:
        """Keep a part of the body of the one that came last. Raises Refusal."""
        if len(cycle.body) + len(part) > MAX_BODY:
            raise malformed("a request with a large body must wait for the answer before it")
        self._require_room(len(part))
        cycle.body += part
        self._size += len(part)

    def take(self) -> ResponseCycle:
        """Return the one that came first."""
        return self._let_go(*self._waiting.popleft())

    def drop_last(self) -> None:
        """Forget the one that came last, unless all were forgotten since it came."""
        if self._waiting:
            self._let_go(*self._waiting.pop())

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
        self._size = 0

    def _let_go(self, cycle: ResponseCycle, head_size: int) -> ResponseCycle:
        self._size -= head_size + len(cycle.body)
        return cycle

    def _require_room(self, size: int) -> None:
        if self._size + size > MAX_SIZE:
            raise malformed(
                f"requests of more than {MAX_SIZE // 1024} KiB wait on this connection;"
                " wait for the answers before them"
            )


def _size_of(head: RequestHead) -> int:
    fields = sum(len(name) + len(value) + _HEADER_SIZE for name, value in head.headers)
    return _REQUEST_SIZE + 2 * len(head.raw_path) + len(head.query) + fields
