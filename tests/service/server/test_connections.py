"""Which connection goes when there are too many, and how they are counted."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from service.server.connections import Closed, ConnectionPhase, Connections
from service.server.limits import ConnectionLimits
from service.server.refusals import malformed

if TYPE_CHECKING:
    from service.server.refusals import Refusal


class FakeConnection:
    has_bytes = False

    def __init__(self, connections: Connections, phase: ConnectionPhase | None) -> None:
        self.dropped: Closed | None = None
        self.refused: Refusal | None = None
        self.has_room = connections.add(self)
        if phase is not None:
            connections.mark(self, phase)

    def drop(self, reason: Closed) -> None:
        self.dropped = reason

    def is_at_rest(self) -> bool:
        return not self.has_bytes

    def refuse(self, refusal: Refusal) -> None:
        self.refused = refusal


@pytest.fixture
def connections() -> Connections:
    return Connections(ConnectionLimits(max_connections=3))


IDLE, HEAD = ConnectionPhase.IDLE, ConnectionPhase.HEAD
BODY, ANSWERING = ConnectionPhase.BODY, ConnectionPhase.ANSWERING


def test_oldest_idle_one_makes_room(connections):
    held = [FakeConnection(connections, phase) for phase in (ANSWERING, IDLE, IDLE)]
    new = FakeConnection(connections, IDLE)
    assert new.has_room
    assert [one.dropped for one in held] == [None, Closed.CAP, None]
    assert connections.num_open == 3
    connections.remove(held[1], Closed.CAP)  # once the loop has closed it
    assert connections.closed == Counter({Closed.CAP: 1})


@pytest.fixture
def crowded() -> Connections:
    return Connections(ConnectionLimits(max_connections=6))


def greeted(connections: Connections) -> FakeConnection:
    connection = FakeConnection(connections, IDLE)
    connections.note_hello(connection)
    return connection


def test_a_flood_that_never_greets_closes_nobody_between_its_greeting_and_its_request(crowded):
    client = greeted(crowded)
    flood = [FakeConnection(crowded, IDLE) for _ in range(20)]
    assert client.dropped is None
    assert [one.dropped for one in flood] == [Closed.CAP] * 15 + [None] * 5


def test_nor_do_those_that_only_greet_close_new_ones_before_these_can(crowded):
    held = [greeted(crowded) for _ in range(6)]
    new = [FakeConnection(crowded, IDLE) for _ in range(3)]
    assert [one.dropped for one in held] == [Closed.CAP] * 3 + [None] * 3
    assert not any(one.dropped for one in new)


def test_who_has_asked_after_its_greeting_is_idle_as_any_other(crowded):
    client = greeted(crowded)
    crowded.mark(client, ANSWERING)
    crowded.mark(client, IDLE)
    for _ in range(6):
        FakeConnection(crowded, IDLE)
    assert client.dropped is Closed.CAP


def test_one_that_was_busy_since_is_not_the_oldest_idle_one(connections):
    held = [FakeConnection(connections, IDLE) for _ in range(3)]
    connections.mark(held[0], ANSWERING)
    connections.mark(held[0], IDLE)
    FakeConnection(connections, IDLE)
    assert [one.dropped for one in held] == [None, Closed.CAP, None]


def test_one_that_was_answered_as_soon_as_it_asked_is_not_the_oldest_idle_one(connections):
    held = [FakeConnection(connections, IDLE) for _ in range(3)]
    connections.mark(held[0], IDLE)
    connections.mark(held[1], HEAD)
    connections.mark(held[1], IDLE)
    FakeConnection(connections, IDLE)
    assert [one.dropped for one in held] == [None, None, Closed.CAP]


def test_half_a_request_keeps_no_place(connections):
    held = [FakeConnection(connections, IDLE) for _ in range(3)]
    connections.mark(held[0], HEAD)
    connections.mark(held[0], BODY)
    FakeConnection(connections, IDLE)
    assert [one.dropped for one in held] == [Closed.CAP, None, None]


def test_but_an_answer_keeps_its_place_while_another_request_comes_behind_it(connections):
    held = [FakeConnection(connections, IDLE) for _ in range(3)]
    connections.mark(held[0], BODY, is_answering=True)
    assert connections.num_incomplete == 1
    FakeConnection(connections, IDLE)
    assert [one.dropped for one in held] == [None, Closed.CAP, None]
    connections.mark(held[0], BODY)
    FakeConnection(connections, IDLE)
    assert [one.dropped for one in held] == [None, Closed.CAP, Closed.CAP]


def test_one_whose_request_waits_to_be_read_is_passed_over(connections):
    held = [FakeConnection(connections, IDLE) for _ in range(3)]
    held[0].has_bytes = True
    FakeConnection(connections, IDLE)
    assert [one.dropped for one in held] == [None, Closed.CAP, None]


def test_but_where_all_have_sent_something_the_oldest_goes(connections):
    held = [FakeConnection(connections, IDLE) for _ in range(3)]
    for one in held:
        one.has_bytes = True
    FakeConnection(connections, IDLE)
    assert [one.dropped for one in held] == [Closed.CAP, None, None]


def test_new_one_goes_where_all_are_being_answered(connections):
    held = [FakeConnection(connections, ANSWERING) for _ in range(3)]
    new = FakeConnection(connections, None)
    assert not new.has_room
    assert all(one.dropped is None for one in held)
    connections.remove(new, Closed.NO_ROOM)
    assert connections.num_open == 3
    assert connections.closed == Counter({Closed.NO_ROOM: 1})


def test_one_that_reads_no_answer_makes_room_where_none_is_idle(connections):
    held = [FakeConnection(connections, ANSWERING) for _ in range(3)]
    for one in (held[2], held[1]):
        connections.mark_stalled(one, is_stalled=True)
    connections.mark_stalled(held[2], is_stalled=False)
    assert FakeConnection(connections, IDLE).has_room
    assert [one.dropped for one in held] == [None, Closed.CAP, None]
    FakeConnection(connections, IDLE)
    assert held[0].dropped is None  # the idle one went
    assert connections.closed == Counter({Closed.CAP: 2})


def test_one_that_goes_on_as_another_is_not_counted_as_closed(connections):
    held = [FakeConnection(connections, IDLE) for _ in range(3)]
    connections.hand_over(held[0])
    assert FakeConnection(connections, IDLE).has_room
    assert connections.num_open == 3
    assert not connections.closed


def test_those_whose_request_has_not_come_whole_are_closed_for_a_drain(connections):
    held = [FakeConnection(connections, phase) for phase in (BODY, ANSWERING, HEAD)]
    assert connections.num_incomplete == 2
    assert connections.close_incomplete() == 2
    assert [one.refused.status if one.refused else None for one in held] == [503, None, 503]
    assert connections.is_draining


def test_refused_requests_are_counted_by_their_code(connections):
    for _ in range(20):
        connections.note_refusal(malformed("no"), "127.0.0.1")
    assert connections.refused == Counter({"invalid_http": 20})


def test_that_there_is_no_room_is_said_but_not_each_time(connections):
    for _ in range(3):
        FakeConnection(connections, ANSWERING)
    with capture_logs() as lines:
        for _ in range(10):
            assert not FakeConnection(connections, None).has_room
    (line,) = lines
    assert (line["event"], line["max_connections"]) == ("connections_full", 3)
