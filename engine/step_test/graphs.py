"""Recorded steps against the same steps as they come: the same tokens, and the same logprobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from engine.step_test.step_check import WORST_OF_ALL, Part, StepCheck, off_by
from engine.step_test.trial import TriedEngine, answer_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from engine.execution.decode_graphs import Recordings
    from engine.step_test.trial import Answer

# Rows of steps: one alone, and so many that a graph's rows are not all in use.
NUM_ROWS = (1, 5)
# Two replays of a step, the second one on what the first left, in the longest row's next block: the
# cache's blocks hold 16 tokens.
PROMPT_TOKENS = 15
NUM_TOKENS = 3
# In units of the dtype's largest rounding error. The same kernels on the same shapes give the same
# numbers, but a library may choose other ones inside a graph.
MAX_LOGPROB_ERROR = 16.0
SMALLEST_BOUND = 2**-12


class RecordingEngine(TriedEngine, Protocol):
    """An engine whose recording can be told what to do for a while."""

    def recordings(self) -> Recordings:
        """Say what is recorded and replayed."""

    def eagerly(self) -> AbstractContextManager[None]:
        """Run every step as it comes until the end of the block."""

    def recording_at_once(self) -> AbstractContextManager[None]:
        """Record every decode step that is wanted until the end of the block."""


def check_graphs(engine: RecordingEngine, max_num_seqs: int, unit: float) -> Iterator[StepCheck]:
    """Have the same prompts answered both ways; unit: the dtype's largest rounding error.

    Replayed twice: by the graphs that most requests take, which tell tokens alone, and by graphs
    that tell logprobs, too.
    """
    for num_rows in sorted({min(rows, max_num_seqs) for rows in NUM_ROWS}):
        prompts = _prompts(engine, num_rows)
        with engine.eagerly():
            expected = answer_all(engine, prompts, NUM_TOKENS)
        before = engine.recordings().num_replays
        found = answer_all(engine, prompts, NUM_TOKENS, num_logprobs=None)
        with engine.recording_at_once():
            found += answer_all(engine, prompts, NUM_TOKENS)
        if engine.recordings().num_replays == before:
            # Nothing was compared but steps as they come with themselves.
            yield StepCheck(f"graph of {num_rows} rows", Part.GRAPHS, None, "nothing is recorded")
            continue
        worst, detail = 0.0, "the same tokens and logprobs"
        for mine, theirs in zip(found, expected + expected, strict=True):
            share, words = _compare(mine, theirs, unit)
            if share > worst:
                worst, detail = share, words
        yield StepCheck(f"graph of {num_rows} rows", Part.GRAPHS, worst <= 1, detail, worst)


def _prompts(engine: RecordingEngine, num_rows: int) -> list[tuple[int, ...]]:
    limits = engine.limits
    length = max(1, min(PROMPT_TOKENS, limits.max_model_len - NUM_TOKENS))
    generator = torch.Generator().manual_seed(num_rows)
    # Of different lengths, so that a row that reads another's position is seen.
    return [
        tuple(torch.randint(limits.vocab_size, (stop,), generator=generator).tolist())
        for stop in (max(1, length - row) for row in range(num_rows))
    ]


def _compare(found: Answer, expected: Answer, unit: float) -> tuple[float, str]:
    """Return the largest error as a share of what is allowed, in words, too."""
    bound = max(MAX_LOGPROB_ERROR * unit, SMALLEST_BOUND)
    worst = 0.0
    for row, (mine, theirs) in enumerate(zip(found.token_ids, expected.token_ids, strict=True)):
        told = expected.logprobs[row]
        allowed = bound * max(1.0, abs(told.logprob))
        if found.logprobs:
            worst = max(worst, _share(found.logprobs[row].logprob - told.logprob, allowed))
        if mine != theirs:
            # By how much the token was behind; one that is not among the leading ones is far.
            behind = told.logprob - dict(told.top).get(mine, -torch.inf)
            worst = max(worst, _share(behind, allowed))
            if worst > 1:
                return worst, f"replayed token {row + 1} is {mine}, not {theirs}"
            break  # a near tie: from here on they answer different texts
    return worst, f"logprobs are {off_by(worst)}"


def _share(error: float, allowed: float) -> float:
    return min(abs(error) / allowed, WORST_OF_ALL) if error == error else WORST_OF_ALL
