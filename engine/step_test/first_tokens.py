"""A step as it is served, put beside the reference pass: the first layers' tokens and logprobs.

Here orders of columns, joined products, positions, blocks and sampling meet as they will for every
request; each of its parts may be right and the whole be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.step_test.reference_pass import NUM_TOKENS
from engine.step_test.step_check import WORST_OF_ALL, Part, StepCheck, off_by
from engine.step_test.trial import answer_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from engine.outputs import TokenLogprobs
    from engine.step_test.reference_pass import ReferencePass
    from engine.step_test.trial import Answer, TriedEngine

# How far logprobs may be off, in units of the largest rounding error there is, as shares of their
# spread. Two layers round some twenty times on the way to a logit: 2.0 to 4.9 units were measured
# for five random models in float16 and in bfloat16, 2026-11.
MAX_LOGPROB_ERROR = 32.0
SMALLEST_BOUND = 2**-9  # for sums in float32 in another order
# Two tokens whose logprobs are nearer than this many bounds may change places.
TIES = 4.0


def check_first_tokens(engine: TriedEngine, reference: ReferencePass, unit: float) -> StepCheck:
    """Have the engine, cut to the reference's layers, answer its prompts.

    unit: the largest relative error of one rounding on the way, of keys and values too.
    """
    answers = answer_all(engine, reference.prompts, NUM_TOKENS, with_prompts=True)
    bound = max(MAX_LOGPROB_ERROR * unit, SMALLEST_BOUND)
    worst, detail = 0.0, ""
    for number, answer in enumerate(answers):
        share, words = _compare(answer, reference, number, bound)
        if share >= worst:
            worst, detail = share, f"prompt {number}: {words}"
    name = f"first tokens of {reference.num_layers} layers"
    return StepCheck(name, Part.WHOLE_STEP, worst <= 1, detail, worst)


def _compare(
    answer: Answer, reference: ReferencePass, number: int, bound: float
) -> tuple[float, str]:
    """Return the error of one prompt's answer as a share of what is allowed, in words, too."""
    expected = reference.logprobs[number]  # [rows, vocab]
    spread = expected.std(dim=-1)
    squares: list[float] = []
    for row, told in enumerate(answer.of_prompt):
        token_id = reference.prompts[number][row + 1]
        squares += _squares(told, token_id, expected[row], float(spread[row]))
    first = len(answer.of_prompt)
    wanted = reference.token_ids[number].tolist()
    for row, (token_id, told) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
        logprobs, size = expected[first + row], float(spread[first + row])
        squares += _squares(told, token_id, logprobs, size)
        if token_id != wanted[row]:
            gap = float(logprobs[wanted[row]] - logprobs[token_id]) / size
            if not gap <= TIES * bound:
                words = f"token {row + 1} is {token_id}, {wanted[row]} by the reference"
                return min(gap / bound, WORST_OF_ALL), words
            break  # from here on it answers another text
    error = (sum(squares) / len(squares)) ** 0.5
    share = min(error / bound, WORST_OF_ALL) if error == error else WORST_OF_ALL
    return share, f"logprobs are {off_by(share)}"


def _squares(
    told: TokenLogprobs, token_id: int, expected: Tensor, spread: float
) -> Iterator[float]:
    for told_id, logprob in ((token_id, told.logprob), *told.top):
        yield ((logprob - float(expected[told_id])) / spread) ** 2
