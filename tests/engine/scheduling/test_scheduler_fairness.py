"""Shares of callers under backlog, on a virtual clock: a step takes 4 ms and 50 µs a token."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from engine.core import Engine
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import SampledTokens, ScheduledBatch
from tests.engine.fake_runner import config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.config import EngineConfig

WINDOW_S = 10.0


class Step:
    def __init__(self, batch: ScheduledBatch) -> None:
        self.batch = batch

    def result(self) -> SampledTokens:
        sampled = [chunk.sequence_id for chunk in self.batch.chunks if chunk.num_samples]
        return SampledTokens(dict.fromkeys((*self.batch.decodes.sequence_ids, *sampled), (7,)))


class Service:
    """An engine with a clock that its steps drive, and a record of who was served when."""

    vocab_size = 1000
    kernel_choices = ""

    def __init__(self, sizes: EngineConfig) -> None:
        self.now = 0.0
        self.engine = Engine.with_runner(self, sizes, clock=lambda: self.now)
        self.caller_of: dict[int, str] = {}
        self.served: list[tuple[float, dict[str, int]]] = []
        self.reached: dict[int, int] = defaultdict(int)  # tokens, by sequence
        self.last_served: dict[int, float] = {}
        self.gaps: dict[int, float] = defaultdict(float)  # longest without a token, by sequence

    def launch(self, batch: ScheduledBatch) -> Step:
        self.now += 0.004 + 0.00005 * batch.num_tokens
        tokens: dict[str, int] = defaultdict(int)
        stops = [position + 1 for position in batch.decodes.positions]
        stops += [chunk.stop for chunk in batch.chunks]
        for sequence_id, stop in zip(batch.sequence_ids, stops, strict=True):
            # What is computed again after a preemption serves nobody.
            tokens[self.caller_of[sequence_id]] += max(0, stop - self.reached[sequence_id])
            self.reached[sequence_id] = max(stop, self.reached[sequence_id])
        for sequence_id in batch.sequence_ids:
            gap = self.now - self.last_served[sequence_id]
            self.gaps[sequence_id] = max(self.gaps[sequence_id], gap)
            self.last_served[sequence_id] = self.now
        self.served.append((self.now, dict(tokens)))
        return Step(batch)

    def submit(
        self, caller: str, prompt_tokens: int, max_tokens: int, weight: float = 1.0, **others: int
    ) -> int:
        sequence_id = len(self.caller_of)
        self.caller_of[sequence_id] = caller
        self.last_served[sequence_id] = self.now
        prompt = tuple((sequence_id * 37 + i) % 1000 for i in range(prompt_tokens))
        self.engine.add(
            SequenceRequest(
                sequence_id=sequence_id,
                prompt_token_ids=prompt,
                params=SamplingParams(max_tokens=max_tokens, temperature=0),
                caller=caller,
                weight=weight,
                **others,  # type: ignore[arg-type]
            )
        )
        return sequence_id

    def run(self, seconds: float, keep_busy: Callable[[], None] = lambda: None) -> None:
        until = self.now + seconds
        while self.now < until:
            keep_busy()
            assert self.engine.has_work, "the load was to last"
            self.engine.step()
        self.engine.scheduler.check()

    def shares(self, start: float, stop: float) -> Mapping[str, float]:
        total: dict[str, int] = defaultdict(int)
        for at, tokens in self.served:
            if start <= at < stop:
                for caller, count in tokens.items():
                    total[caller] += count
        return {caller: count / sum(total.values()) for caller, count in total.items()}


def sizes(**changes: int) -> EngineConfig:
    return config(
        **(
            {"max_num_seqs": 16, "max_num_batched_tokens": 512, "max_model_len": 1024}
            | {"num_blocks": 2000, "block_size": 16}
            | changes
        )
    )


@pytest.mark.parametrize("num_blocks", [2000, 300], ids=["room for all", "short of blocks"])
@pytest.mark.parametrize(
    "weights",
    [{"a": 1, "b": 1}, {"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 10}, dict.fromkeys("abcdefgh", 1)],
    ids=str,
)
def test_every_ten_seconds_of_backlog_are_shared_by_weight(
    weights: dict[str, float], num_blocks: int
):
    """Callers with many requests, few, short ones and long ones."""
    chance = random.Random(4)
    service = Service(sizes(num_blocks=num_blocks))
    lengths = {caller: (chance.choice([20, 200, 600]), 300) for caller in weights}

    def keep_busy() -> None:
        waiting = defaultdict(int)
        for sequence in service.engine.scheduler._queue:
            waiting[sequence.caller.name] += 1
        for caller, weight in weights.items():
            while waiting[caller] < 4:
                waiting[caller] += 1
                prompt, answer = lengths[caller]
                service.submit(caller, chance.randint(1, prompt), chance.randint(1, answer), weight)

    service.run(45, keep_busy)
    total = sum(weights.values())
    for start in range(2, 34):
        shares = service.shares(start, start + WINDOW_S)
        for caller, weight in weights.items():
            fair = weight / total
            assert abs(shares[caller] - fair) <= 0.1 * fair, (start, shares)


def test_one_request_is_not_held_up_by_a_thousand_of_somebody_else():
    service = Service(sizes())
    for _ in range(1000):
        service.submit("many", 100, 300)
    service.run(5)
    one = service.submit("one", 100, 50)
    submitted = service.now
    while one not in service.gaps:
        service.engine.step()
    assert service.now - submitted < 0.5
    while any(
        each.sequence_id == one for each in service.engine.scheduler._residency.sequences.values()
    ):
        service.engine.step()
    # Alone it would take 50 steps of at least 4.8 ms.
    assert service.now - submitted < 1.5


def test_nobody_starves():
    """Everyone is served again and again, whoever else has work."""
    chance = random.Random(1)
    service = Service(sizes(num_blocks=200))
    for _ in range(300):
        service.submit(chance.choice("abcde"), chance.randint(1, 600), chance.randint(1, 200))
    while service.engine.has_work:
        service.engine.step()
    assert len(service.gaps) == 300
    assert not service.engine.scheduler.has_work


def test_who_rested_does_not_save_up():
    service = Service(sizes())
    for _ in range(1000):
        service.submit("busy", 50, 300)
    service.run(20)
    for _ in range(500):
        service.submit("rested", 50, 300)
    start = service.now
    service.run(WINDOW_S)
    assert service.shares(start, service.now)["busy"] > 0.4


def test_leaving_and_coming_back_does_not_pay_debts_off():
    service = Service(sizes(max_num_seqs=2))
    service.submit("steady", 10, 1000)
    for _ in range(10):
        service.submit("greedy", 500, 1)
    service.run(0.5)
    scheduler = service.engine.scheduler
    before = scheduler.caller("greedy", 1.0).clock
    while scheduler.caller("greedy", 1.0).num_sequences:
        service.engine.step()
    service.submit("greedy", 10, 10)
    assert scheduler.caller("greedy", 1.0).clock >= before


def test_what_was_used_while_nobody_else_wanted_it_is_not_held_against_anyone():
    service = Service(sizes(max_num_seqs=2))
    service.submit("night", 500, 300)
    while service.engine.has_work:
        service.engine.step()
    service.submit("day", 10, 900)
    service.submit("night", 10, 900)
    start = service.now
    service.run(1)
    assert service.shares(start, service.now)["night"] > 0.4


def test_urgent_sequences_run_before_others_and_in_their_place():
    service = Service(sizes(max_num_seqs=2))
    for _ in range(4):
        service.submit("a", 10, 500)
    service.run(0.2)
    urgent = service.submit("a", 10, 20, priority=-1)
    submitted = service.now
    while urgent not in service.gaps:
        service.engine.step()
    assert service.now - submitted < 0.05
    assert service.engine.statistics().num_pauses == 1


def test_bounds_hold_under_any_load():
    chance = random.Random(2)
    limits = sizes(max_num_seqs=5, max_num_batched_tokens=64, num_blocks=70)
    service = Service(limits)
    launch = service.launch

    def checked(batch: ScheduledBatch) -> Step:
        assert batch.num_tokens <= 64
        assert len(batch.sequence_ids) <= 5
        return launch(batch)

    service.launch = checked  # type: ignore[method-assign]
    for _ in range(100):
        service.submit(chance.choice("ab"), chance.randint(1, 500), chance.randint(1, 400))
        for _ in range(chance.randint(0, 20)):
            service.engine.step()
            service.engine.scheduler.check()
