"""When a thread is given up to a busy neighbour, and when it is taken back."""

from __future__ import annotations

import pytest

from engine.process.cpu_use import CpuUse
from engine.process.thread_count import LONGEST_REST_S, ThreadCount

READING_S = 0.2


class Machine:
    """A machine on which the others take as much as they are told, and a count that is asked."""

    def __init__(self, cpus: int, most: int | None = None) -> None:
        self.cpus, self.now = cpus, 100.0
        self.count = ThreadCount(most or cpus, self.now)

    def run(self, seconds: float, *, others: float, waited: float, stepping: float = 1.0) -> int:
        """Let time pass; others, waited: as shares of it, of one CPU. Return the threads."""
        for _ in range(round(seconds / READING_S)):
            self.read(READING_S, others, waited, stepping)
        return self.count.number

    def read(self, wall_s: float, others: float, waited: float, stepping: float = 1.0) -> int:
        self.now += wall_s
        use = CpuUse(
            computed_s=0.0,
            waited_s=waited * stepping * wall_s,
            others_s=others * wall_s,
            num_cpus=self.cpus,
        )
        self.count.take_in(use, now=self.now, wall_s=wall_s, stepped_s=stepping * wall_s)
        return self.count.number

    def run_beside(self, others: float, seconds: float, *, is_hidden: bool = False) -> list[int]:
        """Run beside what is always busy; return the threads at each reading."""
        numbers = []
        for _ in range(round(seconds / READING_S)):
            waited = 0.6 if self.count.number > self.cpus - others else 0.02
            numbers.append(self.read(READING_S, 0.0 if is_hidden else others, waited))
        return numbers


def test_all_threads_compute_where_they_have_the_cpus_to_themselves():
    assert Machine(2).run(60, others=0.1, waited=0.06) == 2


def test_one_thread_is_given_up_at_once_beside_a_busy_process_and_stays_so():
    machine = Machine(2)
    assert machine.run(READING_S, others=0.5, waited=0.52) == 1
    assert machine.run(60, others=1.0, waited=0.02) == 1


def test_one_thread_is_left_however_many_are_busy():
    machine = Machine(2)
    machine.run(5, others=1.3, waited=0.9)
    assert machine.run(5, others=1.3, waited=0.4) == 1


def test_a_process_that_is_busy_now_and_then_takes_no_thread():
    """Such as the server's own, beside eight streams."""
    assert Machine(2).run(60, others=0.3, waited=0.2) == 2


@pytest.mark.parametrize("cpus", [8, 16, 64])
def test_on_many_cores_a_busy_neighbour_costs_one(cpus):
    machine = Machine(cpus)
    assert machine.run_beside(1.0, 10)[-1] == cpus - 1


def test_several_neighbours_take_as_many_threads_in_one_reading():
    assert Machine(16).read(READING_S, others=5.0, waited=3.0) == 11


def test_two_engines_share_the_cores():
    """Each sees what the other computes as taken."""
    first, second = Machine(8), Machine(8)
    for _ in range(20):
        crowd = first.count.number + second.count.number
        waited = 0.6 if crowd > 8 else 0.02
        share = min(1.0, 8 / crowd)
        taken = first.count.number * share, second.count.number * share
        first.read(READING_S, taken[1], waited)
        second.read(READING_S, taken[0], waited)
    assert (first.count.number, second.count.number) == (4, 4)


def test_neighbours_on_other_hardware_threads_of_the_cores_take_none():
    """Eight cores of two hardware threads each: all eight threads have a CPU."""
    assert Machine(16, most=8).run(10, others=1.0, waited=0.05) == 8


def test_the_thread_comes_back_once_the_neighbour_has_been_gone_for_a_second():
    machine = Machine(2)
    machine.run_beside(1.0, 10)
    assert machine.run(0.8, others=0.02, waited=0.0) == 1
    assert machine.run(0.4, others=0.02, waited=0.0) == 2


def test_a_pause_of_the_neighbour_is_not_its_end():
    machine = Machine(2)
    machine.run_beside(1.0, 10)
    for _ in range(20):
        machine.run(0.6, others=0.0, waited=0.0)
        assert machine.run(0.4, others=1.0, waited=0.02) == 1


def test_a_pause_of_the_engine_counts_too_where_nobody_else_was_busy_in_it():
    machine = Machine(2)
    machine.run_beside(1.0, 10)
    assert machine.read(30, others=0.02, waited=0.0, stepping=0.001) == 2


def test_waiting_in_hardly_any_steps_says_nothing():
    assert Machine(2).read(READING_S, others=1.0, waited=0.9, stepping=0.1) == 2


def test_a_neighbour_that_proc_does_not_show_is_tried_ever_more_seldom():
    machine = Machine(2)
    numbers = machine.run_beside(1.0, 600, is_hidden=True)
    tried = [at * READING_S for at, number in enumerate(numbers) if number == 2]
    assert tried[1] - tried[0] < 4
    assert LONGEST_REST_S <= tried[-1] - tried[-2] < LONGEST_REST_S + 1
    assert len(tried) < 0.01 * len(numbers)


def test_after_a_while_without_neighbours_the_next_one_is_soon_forgotten_again():
    machine = Machine(2)
    machine.run_beside(1.0, 200, is_hidden=True)
    machine.run(LONGEST_REST_S + 10, others=0.0, waited=0.0)
    machine.run_beside(1.0, 10)
    assert machine.run(1.2, others=0.0, waited=0.0) == 2
