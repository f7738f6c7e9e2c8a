"""How long a body may take, by how it comes."""

from __future__ import annotations

import pytest

from service.server.body_pace import MOST_AHEAD, BodyPace
from service.server.limits import ConnectionLimits


@pytest.fixture
def pace() -> BodyPace:
    made = BodyPace(ConnectionLimits(body_timeout_s=30, min_body_rate=1000))
    made.begin(100)
    return made


def test_each_byte_adds_its_time(pace: BodyPace):
    assert pace.left_s(110) == 20
    pace.add(5000, 110)
    assert pace.left_s(110) == 25


def test_one_that_keeps_coming_has_time_for_ever(pace: BodyPace):
    for now in range(100, 10_000, 10):
        assert pace.left_s(now) >= 20
        pace.add(10_000, now)


def test_one_that_came_fast_may_not_be_silent_for_long(pace: BodyPace):
    for _ in range(100):
        pace.add(10_000_000, 101)
    assert pace.left_s(101) == MOST_AHEAD * 30
    for second in range(102, 162):
        pace.add(1, second)  # nor drip
    assert pace.left_s(162) < 0.1


def test_one_that_waited_for_us_begins_anew(pace: BodyPace):
    pace.add(1_000_000, 100)
    pace.begin(150)
    assert pace.left_s(150) == 30
