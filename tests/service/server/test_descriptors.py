"""How many connections the descriptors allow."""

from __future__ import annotations

import resource
import socket
import sys
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from service.server import descriptors
from service.server.descriptors import (
    RESERVE,
    RESERVE_A_VARIANT,
    has_received_bytes,
    has_unread_bytes,
    num_unsent_by_system,
    resolve_max_connections,
)
from tests.service.server.tcp_pair import make_tcp_pair

RESERVED = RESERVE + RESERVE_A_VARIANT


@pytest.fixture
def limits(monkeypatch) -> list[int]:
    """The soft and the hard limit of a pretended process."""
    pretended = [1024, 4096]

    def set_limits(_: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > pretended[1]:
            raise ValueError
        pretended[:] = wanted

    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: tuple(pretended))
    monkeypatch.setattr(descriptors.resource, "setrlimit", set_limits)
    return pretended


def test_limit_is_raised_where_the_system_allows(limits):
    with capture_logs() as lines:
        assert resolve_max_connections(2000) == 2000
    assert limits == [2000 + RESERVED, 4096]
    assert lines == []


def test_fewer_are_taken_where_it_does_not_and_the_log_says_so(limits):
    limits[:] = [128, 128]
    with capture_logs() as lines:
        assert resolve_max_connections(4096) == 128 - RESERVED
    (line,) = lines
    assert (line["max_connections"], line["descriptors"]) == (64, 128)
    assert f"allow {4096 + RESERVED} open files" in line["hint"]


def test_each_variant_has_descriptors_of_its_own(limits):
    limits[:] = [256, 256]
    assert resolve_max_connections(4096, 1) - resolve_max_connections(4096, 5) == 64


def test_limit_that_suffices_is_left(limits):
    assert resolve_max_connections(100) == 100
    assert limits == [1024, 4096]
    limits[:] = [resource.RLIM_INFINITY] * 2
    assert resolve_max_connections(10_000) == 10_000


class Transport:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def get_extra_info(self, name: str) -> object:
        return {"socket": self._socket}.get(name)


def test_bytes_that_wait_are_seen_but_not_those_of_one_that_has_left():
    ours, theirs = make_tcp_pair()
    transport = Transport(theirs)
    assert not has_unread_bytes(transport)
    ours.sendall(b"x")
    assert has_unread_bytes(transport)
    ours.close()
    assert not has_unread_bytes(transport)
    theirs.close()
    assert not has_unread_bytes(transport)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_bytes_that_have_come_are_known_though_they_were_read():
    ours, theirs = make_tcp_pair()
    transport = Transport(theirs)
    assert not has_received_bytes(transport)
    ours.sendall(b"x")
    assert theirs.recv(10) == b"x"
    assert has_received_bytes(transport)
    theirs.sendall(b"y")  # looking has closed nothing
    assert ours.recv(10) == b"y"
    ours.close()
    theirs.close()
    assert not has_received_bytes(transport)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_bytes_that_the_system_keeps_are_counted_until_they_are_taken():
    ours, theirs = socket.socketpair()
    transport = Transport(ours)
    assert num_unsent_by_system(transport) == 0
    ours.sendall(b"x" * 1000)
    assert num_unsent_by_system(transport) >= 1000
    theirs.recv(1000)
    assert num_unsent_by_system(transport) == 0
    descriptor = ours.fileno()
    ours.close()
    assert num_unsent_by_system(transport) == 0
    assert num_unsent_by_system(Transport(SimpleNamespace(fileno=lambda: descriptor))) == 0
    theirs.close()
