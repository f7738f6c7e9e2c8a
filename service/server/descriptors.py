"""How many connections the process has descriptors for, and what the system knows of one.

A connection takes one. Where the limit that processes begin with is lower than what the settings
allow, it is raised as far as the system lets a process do so itself.
"""

from __future__ import annotations

import fcntl
import resource
import select
import socket
import sys
import termios
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import asyncio

log = structlog.get_logger(__name__)

RESERVE = 48  # descriptors: files, logs, and connections that are on their way out
RESERVE_A_VARIANT = 16  # pipes and sockets of its engine, and of what renders its templates


def resolve_max_connections(wanted: int, num_variants: int = 1) -> int:
    """How many connections there may be at a time; fewer than wanted where descriptors are few."""
    reserve = RESERVE + RESERVE_A_VARIANT * num_variants
    soft = _raise_limit(wanted + reserve)
    if soft == resource.RLIM_INFINITY or soft >= wanted + reserve:
        return wanted
    most = max(1, soft - reserve)
    log.warning(
        "fewer_connections",
        max_connections=most,
        wanted=wanted,
        descriptors=soft,
        hint=f"allow {wanted + reserve} open files (ulimit -n, LimitNOFILE=)",
    )
    return most


def _raise_limit(needed: int) -> int:
    """Raise the limit to what is needed, if the system allows; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return soft
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):  # some systems have a further limit of their own
        return soft
    return raised


def has_unread_bytes(transport: asyncio.BaseTransport) -> bool:
    """Whether a connection that is still open holds bytes that nobody has read yet."""
    if (descriptor := _descriptor_of(transport)) < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | _GONE)
    return any(event & select.POLLIN and not event & _GONE for _, event in poll.poll(0))


def has_received_bytes(transport: asyncio.BaseTransport) -> bool:
    """Whether anything has come on a connection, read or not (TCP on Linux; else False)."""
    if sys.platform != "linux" or _descriptor_of(transport) < 0:
        return False
    sock = transport.get_extra_info("socket")
    try:
        told: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.stop)
    except OSError:  # no TCP, or closed
        return False
    return any(told[_RECEIVED])  # shorter where the system is older than Linux 4.1


def num_unsent_by_system(transport: asyncio.BaseTransport) -> int:
    """Count the bytes that the system keeps until the other end has taken them (Linux; else 0)."""
    if sys.platform != "linux" or (descriptor := _descriptor_of(transport)) < 0:
        return 0
    try:
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ, of a socket
    except OSError:  # closed, which is told in the loop's next turn
        return 0
    return int.from_bytes(answer, sys.byteorder, signed=True)


def _descriptor_of(transport: asyncio.BaseTransport) -> int:
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())


_RECEIVED = slice(128, 136)  # tcpi_bytes_received in Linux's struct tcp_info
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
