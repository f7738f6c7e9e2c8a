"""When the live check may look at its next part. Pure policy, on a clock of its own."""

from __future__ import annotations

import pytest

from engine.process.check_pace import (
    BUSY_SHARE,
    IDLE_AFTER_S,
    IDLE_ROUND_S,
    IDLE_SHARE,
    LONGEST_REST_S,
    CheckPace,
)


class Life:
    """An engine's life: what is checked, when, and what it costs."""

    def __init__(self, num_parts: int, part_s: float) -> None:
        self.now = 0.0
        self.pace = CheckPace(num_parts, lambda: self.now)
        self.checked: list[float] = []  # when
        self._part_s = part_s

    def idle(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.now + self.pace.wait_s(has_work=False)) < end:
            self.now = due
            self._check()
        self.now = end

    def busy(self, seconds: float, *, step_s: float = 0.02) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step_s
            self.pace.note_step()
            began = self.now
            while not self.pace.wait_s(has_work=True):
                self._check()
                if self.now - began >= self.pace.slice_s:
                    break

    def _check(self) -> None:
        started, self.now = self.now, self.now + self._part_s
        self.checked.append(started)
        self.pace.note_part(started, self._part_s, self._part_s)


def test_an_idle_engine_is_checked_evenly_round_after_round():
    life = Life(num_parts=200, part_s=0.004)
    life.idle(10 * IDLE_ROUND_S)
    assert len(life.checked) == pytest.approx(10 * 200, rel=0.02)
    pauses = [later - one for one, later in zip(life.checked, life.checked[1:], strict=False)]
    assert max(pauses[1:]) == pytest.approx(IDLE_ROUND_S / 200)


def test_a_large_model_takes_no_more_than_its_share_of_an_idle_machine():
    life = Life(num_parts=300, part_s=0.5)
    life.idle(1000)
    assert len(life.checked) * 0.5 / 1000 == pytest.approx(IDLE_SHARE, rel=0.02)


@pytest.mark.parametrize("part_s", [0.001, 0.01, 0.3, 2.0])
def test_a_busy_engine_gives_at_most_a_hundredth_and_looks_at_a_layer_every_ten_minutes(part_s):
    life = Life(num_parts=200, part_s=part_s)
    life.busy(3000, step_s=0.1)
    assert len(life.checked) * part_s / 3000 <= 0.01
    gaps = [later - one for one, later in zip(life.checked, life.checked[1:], strict=False)]
    assert max(gaps) < 600
    assert max(gaps) == pytest.approx(min(part_s / BUSY_SHARE, LONGEST_REST_S), abs=0.25)


def test_a_moment_without_work_is_no_idleness():
    life = Life(num_parts=200, part_s=0.01)
    for _ in range(50):
        life.busy(0.2)
        life.idle(IDLE_AFTER_S / 2)
    assert len(life.checked) * 0.01 / life.now <= 0.01


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_round_is_made_at_once_where_it_is_asked_for_and_steps_go_on_between(is_busy):
    life = Life(num_parts=50, part_s=0.02)
    life.busy(1)
    before = len(life.checked)
    assert life.pace.hurry()
    if is_busy:
        life.busy(1.45)  # 17 times three parts and a step
        steps = [later - one for one, later in zip(life.checked, life.checked[1:], strict=False)]
        assert sum(pause > 0.03 for pause in steps) >= 16  # of three parts each
    else:
        life.idle(1.1)
    assert 50 <= len(life.checked) - before <= 54


def test_whoever_provokes_rounds_again_and_again_gets_a_tenth_of_the_time():
    life = Life(num_parts=50, part_s=0.02)
    for _ in range(1000):
        life.pace.hurry()
        life.busy(0.1)
    assert 0.05 < len(life.checked) * 0.02 / life.now < 0.11


def test_a_round_that_was_asked_for_too_soon_is_made_later():
    life = Life(num_parts=50, part_s=0.02)
    assert life.pace.hurry()
    life.busy(3)
    assert not life.pace.hurry()
    before = len(life.checked)
    life.busy(15)
    assert len(life.checked) - before >= 50
