"""Sequences on an engine in this process: run to their end, or timed while they go on."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.outputs import SequenceStarted, TokenOutput
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.core import Engine
    from engine.scheduling.sequence import Sequence as EngineSequence

    Prompt = Sequence[int]

WARM_UP_STEPS = 4
_sequence_ids = itertools.count()


@dataclass(frozen=True, slots=True)
class Bound:
    """When a measurement ends: after so many repetitions or seconds, whichever comes first."""

    repetitions: int
    seconds: float

    def allows(self, done: int, since: float) -> bool:
        """Whether one more may begin; since: `time.perf_counter()` when the first began."""
        return done < self.repetitions and (done == 0 or time.perf_counter() - since < self.seconds)


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """How fast sequences went on together."""

    tokens_per_s: float
    num_steps: int
    context: float  # mean length of the sequences meanwhile


def greedy(num_tokens: int) -> SamplingParams:
    """Ask for so many of the likeliest tokens, whatever they are."""
    return SamplingParams(max_tokens=num_tokens, temperature=0)


def run_to_the_end(
    engine: Engine, prompts: Sequence[Prompt], params: SamplingParams
) -> list[list[int]]:
    """Answer the prompts together; return each one's tokens."""
    sequences = _add(engine, prompts, params)
    while engine.has_work:
        _step(engine)
    return [list(sequence.output_token_ids) for sequence in sequences]


def each_step(
    engine: Engine, prompts: Sequence[Prompt], params: SamplingParams
) -> Iterator[Callable[[], None]]:
    """Give what runs the next step, until the prompts are answered."""
    _add(engine, prompts, params)
    while engine.has_work:
        yield lambda: _step(engine)


def run_mixed(
    engine: Engine, prompts: Sequence[Prompt], params: SamplingParams, num_steps: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Let the prompts come again and again, one every few steps, so that steps mix and overlap.

    Returns each prompt that was answered, and its answer.
    """
    sequences: list[EngineSequence] = []
    waiting = itertools.cycle(prompts)
    for number in range(num_steps):
        if number % 3 == 0:
            sequences += _add(engine, [next(waiting)], params)
        _step(engine)
    while engine.has_work:
        _step(engine)
    return (
        [list(sequence.prompt_token_ids) for sequence in sequences],
        [list(sequence.output_token_ids) for sequence in sequences],
    )


def measure_decode(engine: Engine, prompts: Sequence[Prompt], bound: Bound) -> DecodeRate:
    """Count tokens a second once every prompt is read; bound: in steps."""
    num_tokens = WARM_UP_STEPS + 2 * bound.repetitions + len(prompts)
    sequences = _add(engine, prompts, greedy(num_tokens))
    while not all(sequence.output_token_ids for sequence in sequences):
        _step(engine)
    for _ in range(WARM_UP_STEPS):
        _step(engine)
    before, num_steps, began = _lengths(sequences), 0, time.perf_counter()
    while bound.allows(num_steps, began):
        _step(engine)
        num_steps += 1
    seconds, after = time.perf_counter() - began, _lengths(sequences)
    _end(engine, sequences)
    return DecodeRate(
        tokens_per_s=(sum(after) - sum(before)) / seconds,
        num_steps=num_steps,
        context=statistics.mean(before + after),
    )


@contextlib.contextmanager
def decode_steps(
    engine: Engine, prompts: Sequence[Prompt], num_steps: int
) -> Iterator[Callable[[], None]]:
    """Give what runs one decode step of these prompts, read and warmed up; then end them."""
    sequences = _add(engine, prompts, greedy(2 * WARM_UP_STEPS + num_steps + len(prompts)))
    while not all(sequence.output_token_ids for sequence in sequences):
        _step(engine)
    for _ in range(WARM_UP_STEPS):
        _step(engine)
    yield lambda: _step(engine)
    _end(engine, sequences)


def measure_prefill(engine: Engine, make_prompt: Callable[[], Prompt], bound: Bound) -> float:
    """Return prompt tokens a second until the first token; median; bound: in prompts."""
    rates: list[float] = []
    run_to_the_end(engine, [make_prompt()], greedy(1))  # warms up
    started = time.perf_counter()
    while bound.allows(len(rates), started):
        prompt = make_prompt()
        began = time.perf_counter()
        run_to_the_end(engine, [prompt], greedy(1))
        rates.append(len(prompt) / (time.perf_counter() - began))
    return statistics.median(rates)


def _add(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> list[EngineSequence]:
    return [
        engine.add(
            SequenceRequest(
                sequence_id=next(_sequence_ids), prompt_token_ids=tuple(prompt), params=params
            )
        )
        for prompt in prompts
    ]


def _end(engine: Engine, sequences: Sequence[EngineSequence]) -> None:
    for sequence in sequences:
        engine.abort(sequence.sequence_id)
    while engine.has_work:
        _step(engine)


def _step(engine: Engine) -> None:
    for output in engine.step():
        if not isinstance(output, TokenOutput | SequenceStarted):
            raise RuntimeError(f"the engine gave {output}, expected a token")


def _lengths(sequences: Sequence[EngineSequence]) -> list[int]:
    return [len(each.prompt_token_ids) + len(each.output_token_ids) for each in sequences]
