"""Speed of the scheduler alone: how many sequences a second one core takes a step further.

    .venv/bin/python -m benchmarks.scheduling [--record]

The engine is the real one, around a runner that computes nothing. Traffic is steady: as soon as a
sequence has ended another one comes, with prompts and answers of mixed lengths, from several
callers, some prompts beginning alike, and with blocks for all of them but not for everything that
was ever cached. A second figure has no coming and going: everybody decodes. Time is the thread's
own, without the stand-in runner's, so that a busy machine tells much the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from engine.config import EngineConfig
from engine.core import Engine
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import SampledTokens

if TYPE_CHECKING:
    from engine.scheduling.batch import ScheduledBatch

GOAL = 100_000  # sequence-steps a second at 256 sequences
VOCAB_SIZE = 32_000
MAX_MODEL_LEN = 2048
BLOCK_SIZE = 16
ROUNDS = 5
STEPS_PER_ROUND = 1000
WARM_UP_STEPS = 1000  # until those who came together no longer end together
EOS = 2


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who comes, and with what; lengths are drawn evenly, in tokens."""

    name: str
    num_seqs: int
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    num_queued: int  # sequences that wait at any time
    num_callers: int = 8
    num_common_beginnings: int = 4
    common_tokens: int = 256
    common_share: float = 0.5  # of prompts that begin like others


def steady(num_seqs: int) -> Traffic:
    """Describe traffic in which sequences come and go."""
    return Traffic(f"steady, {num_seqs}", num_seqs, (16, 768), (16, 512), num_queued=8)


def frozen(num_seqs: int) -> Traffic:
    """Describe traffic in which everybody decodes to the end of the measurement."""
    length = MAX_MODEL_LEN - 64
    return Traffic(f"frozen, {num_seqs}", num_seqs, (16, 64), (length, length), num_queued=0)


TRAFFICS = (steady(256), frozen(256), steady(32), frozen(32))


class Requests:
    """An endless line of requests; the same ones for the same seed."""

    def __init__(self, traffic: Traffic, seed: int) -> None:
        self._traffic = traffic
        self._random = random.Random(seed)
        self._beginnings = [
            self._tokens(traffic.common_tokens) for _ in range(traffic.num_common_beginnings)
        ]
        self._num_made = 0

    def next(self) -> SequenceRequest:
        """Draw one more."""
        traffic, chance = self._traffic, self._random
        self._num_made += 1
        prompt = self._tokens(chance.randint(*traffic.prompt_tokens))
        if len(prompt) > traffic.common_tokens and chance.random() < traffic.common_share:
            prompt = chance.choice(self._beginnings) + prompt[traffic.common_tokens :]
        return SequenceRequest(
            sequence_id=self._num_made,
            prompt_token_ids=prompt,
            params=SamplingParams(
                max_tokens=chance.randint(*traffic.answer_tokens), eos_token_ids=frozenset((EOS,))
            ),
            caller=f"caller {self._num_made % traffic.num_callers}",
        )

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.choices(range(1000, VOCAB_SIZE), k=count))


class IdleRunner:
    """Gives every sequence a token at once, and counts what that takes."""

    vocab_size = VOCAB_SIZE
    kernel_choices = ""

    def __init__(self) -> None:
        self.num_sequence_steps = 0
        self.seconds = 0.0  # of the thread's time, spent here rather than in the scheduler
        self._token = 1000

    def launch(self, batch: ScheduledBatch) -> IdleStep:
        """Note the batch."""
        return IdleStep(self, batch)

    def sample(self, batch: ScheduledBatch) -> SampledTokens:
        """Sample another token each step, so that no two blocks of an answer are alike."""
        began = time.thread_time()
        self._token = 1000 + (self._token + 1) % (VOCAB_SIZE - 1000)
        tokens = dict.fromkeys(batch.decodes.sequence_ids, (self._token,))
        for chunk in batch.chunks:
            if chunk.num_samples:
                tokens[chunk.sequence_id] = (self._token,)
        self.num_sequence_steps += len(batch.decodes) + len(batch.chunks)
        self.seconds += time.thread_time() - began
        return SampledTokens(tokens)


class IdleStep:
    """A launched step that has nothing to wait for."""

    def __init__(self, runner: IdleRunner, batch: ScheduledBatch) -> None:
        self.batch = batch
        self._runner = runner

    def result(self) -> SampledTokens:
        """Sample."""
        return self._runner.sample(self.batch)


class Bench:
    """An engine kept busy with one kind of traffic."""

    def __init__(self, traffic: Traffic, seed: int) -> None:
        num_seqs = traffic.num_seqs
        longest = traffic.prompt_tokens[1] + traffic.answer_tokens[1]
        config = EngineConfig(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=2048,
            max_model_len=MAX_MODEL_LEN,
            num_blocks=num_seqs * -(-longest // BLOCK_SIZE),
            block_size=BLOCK_SIZE,
        )
        self._traffic = traffic
        self._runner = IdleRunner()
        self._engine = Engine.with_runner(self._runner, config)
        self._requests = Requests(traffic, seed)
        for _ in range(num_seqs):
            self._engine.add(self._requests.next())
        self._run(WARM_UP_STEPS if traffic.num_queued else num_seqs)

    def measure(self, num_steps: int) -> dict[str, float]:
        """Run so many steps; return what one of them took and gave."""
        before = self._engine.statistics()
        rows = self._runner.num_sequence_steps
        seconds = self._run(num_steps)
        rows = self._runner.num_sequence_steps - rows
        after = self._engine.statistics()
        queries = after.prefix_cache_queries - before.prefix_cache_queries
        hits = after.prefix_cache_hits - before.prefix_cache_hits
        return {
            "sequence-steps/s": rows / seconds,
            "µs a step": 1e6 * seconds / num_steps,
            "sequences a step": rows / num_steps,
            "prompt tokens a step": (after.num_prompt_tokens - before.num_prompt_tokens)
            / num_steps,
            "prefix hits, %": 100 * hits / queries if queries else 0.0,
        }

    def _run(self, num_steps: int) -> float:
        """Step; return the seconds of the thread's time that the engine took of them."""
        engine, runner = self._engine, self._runner
        seconds = 0.0
        for _ in range(num_steps):
            arrivals = self._arrivals()
            spent, began = runner.seconds, time.thread_time()
            for request in arrivals:
                engine.add(request)
            engine.step()
            seconds += time.thread_time() - began - (runner.seconds - spent)
        return seconds

    def _arrivals(self) -> list[SequenceRequest]:
        missing = self._traffic.num_queued - self._engine.scheduler.num_waiting
        return [self._requests.next() for _ in range(missing)]


def measure(traffic: Traffic, rounds: int) -> dict[str, Any]:
    """Measure one kind of traffic; medians over the rounds."""
    bench = Bench(traffic, seed=1)
    num_steps = STEPS_PER_ROUND if traffic.num_queued else STEPS_PER_ROUND // rounds
    samples = [bench.measure(num_steps) for _ in range(rounds)]
    medians = {name: statistics.median(each[name] for each in samples) for name in samples[0]}
    return {"traffic": traffic.name} | {name: round(value, 1) for name, value in medians.items()}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(*rows[0], title=f"scheduler (goal at 256 sequences: {GOAL})")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)


def main() -> None:
    """Measure every kind of traffic."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    rows = [measure(traffic, arguments.rounds) for traffic in TRAFFICS]
    show(rows)
    if arguments.record:
        settings = {
            "rounds": arguments.rounds,
            "steps_per_round": STEPS_PER_ROUND,
            "goal": GOAL,
            "traffics": [dataclasses.asdict(traffic) for traffic in TRAFFICS],
        }
        print(record.write("scheduling", settings, rows))


if __name__ == "__main__":
    main()
