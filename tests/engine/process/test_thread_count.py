"""When a thread is given up to a busy neighbour, and when it is taken back."""

from __future__ import annotations

import itertools
import random

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


MANY = [8, 16, 32, 64]


class BusyMachine(Machine):
    """One whose readings scatter as real ones do.

    Ticks on CPUs that are busy for 95 of 100 are off by 0.05 √CPUs; a busy neighbour that shares a
    CPU gets half of it or more, and the thread there waits meanwhile.
    """

    def __init__(self, cpus: int) -> None:
        super().__init__(cpus)
        self.random = random.Random(cpus)

    def run_for(
        self, seconds: float, *, busy: int = 0, jitter: float = 0.03, is_hidden: bool = False
    ) -> list[int]:
        """Run beside busy neighbours; jitter: what a thread waits of its time. Return the threads.

        There is always something else that takes a tenth of a CPU.
        """
        numbers = []
        for _ in range(round(seconds / READING_S)):
            shared = max(0, self.count.number + busy - self.cpus)
            waited = sum(self.random.uniform(0.52, 1.0) for _ in range(shared))
            waited += self.count.number * self.random.uniform(0.1, 1.0) * jitter
            taken = busy - shared + sum(self.random.uniform(0.5, 0.9) for _ in range(shared))
            scatter = self.random.gauss(0.0, 0.05 * self.cpus**0.5)
            others = max(0.0, (0.0 if is_hidden else taken) + 0.1 + scatter)
            numbers.append(self.read(READING_S, others, waited))
        return numbers


def num_changes(numbers: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(numbers))


@pytest.mark.parametrize("cpus", MANY)
def test_jitter_of_many_threads_costs_none(cpus):
    assert set(BusyMachine(cpus).run_for(1200)) == {cpus}


@pytest.mark.parametrize("cpus", MANY)
@pytest.mark.parametrize("busy", [1, 3])
def test_of_many_threads_as_many_go_as_there_are_neighbours_and_stay_away(cpus, busy):
    machine = BusyMachine(cpus)
    numbers = machine.run_for(1200, busy=busy)
    settled = numbers[round(0.2 * cpus / READING_S) :]
    assert set(settled) == {cpus - busy}
    assert num_changes(numbers) <= busy


@pytest.mark.parametrize("cpus", MANY)
def test_many_threads_are_whole_again_some_time_after_a_neighbour_has_gone(cpus):
    machine = BusyMachine(cpus)
    machine.run_for(30, busy=1)
    numbers = machine.run_for(1200)
    assert set(numbers[round((1 + 0.3 * cpus) / READING_S) :]) == {cpus}
    assert num_changes(numbers) == 1


@pytest.mark.parametrize("cpus", MANY)
def test_a_burst_on_half_of_many_cores_costs_no_thread(cpus):
    """Of a twentieth of a second, every ten seconds: a quarter of a reading."""
    machine = BusyMachine(cpus)
    for _ in range(100):
        assert set(machine.run_for(10)) == {cpus}
        assert machine.read(READING_S, others=cpus / 8, waited=cpus / 8) == cpus


@pytest.mark.parametrize("cpus", [8, 16])
def test_a_neighbour_that_is_hidden_from_several_threads_costs_one_and_is_tried_seldom(cpus):
    numbers = BusyMachine(cpus).run_for(1200, busy=1, is_hidden=True)
    assert set(numbers) == {cpus - 1, cpus}
    late = numbers[round(300 / READING_S) :]
    assert late.count(cpus - 1) > 0.75 * len(late)
    assert num_changes(late) <= 2 * 900 / LONGEST_REST_S


@pytest.mark.parametrize("cpus", [32, 64])
def test_a_neighbour_that_is_hidden_from_very_many_threads_looks_like_jitter_and_costs_none(cpus):
    assert set(BusyMachine(cpus).run_for(1200, busy=1, is_hidden=True)) == {cpus}


def test_on_two_threads_one_reading_decides_as_before():
    """Whether half a CPU is seen to be taken or not."""
    for others in (0.0, 0.5):
        assert Machine(2).read(READING_S, others, waited=0.36) == 1
        assert Machine(2).read(READING_S, others, waited=0.34) == 2
