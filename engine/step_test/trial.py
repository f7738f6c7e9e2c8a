"""Prompts answered by an engine that serves nobody yet, greedily and with their logprobs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from engine.errors import EngineStartError
from engine.outputs import PromptLogprobs, SequenceFailure, TokenOutput
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.limits import SequenceLimits
    from engine.outputs import StepOutput, TokenLogprobs

# Leading tokens whose logprobs are told beside the picked one's.
NUM_LOGPROBS = 3


class TriedEngine(Protocol):
    """What a trial needs of an engine; `engine.core.Engine` is one."""

    limits: SequenceLimits

    @property
    def has_work(self) -> bool: ...

    def add(self, request: SequenceRequest) -> object: ...

    def step(self) -> list[StepOutput]: ...


@dataclass(slots=True)
class Answer:
    """What one prompt got."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of each of these tokens
    of_prompt: list[TokenLogprobs] = field(default_factory=list)  # of its tokens but the first


def answer_all(
    engine: TriedEngine,
    prompts: Sequence[tuple[int, ...]],
    num_tokens: int,
    *,
    num_logprobs: int | None = NUM_LOGPROBS,
    with_prompts: bool = False,
) -> list[Answer]:
    """Have prompts answered together. Raises EngineStartError where one is not.

    num_logprobs: of leading tokens, told with each; with_prompts: for prompts, too. What is kept of
    their keys and values is found by no other request, since it may be wrong.
    """
    salt = secrets.token_hex(16)
    params = SamplingParams(
        max_tokens=num_tokens,
        temperature=0.0,
        ignore_eos=True,
        logprobs=num_logprobs,
        prompt_logprobs=num_logprobs if with_prompts else None,
    )
    # Clients count from 0.
    answers = {-1 - number: Answer() for number in range(len(prompts))}
    for sequence_id, prompt in zip(answers, prompts, strict=True):
        engine.add(
            SequenceRequest(
                sequence_id=sequence_id, prompt_token_ids=prompt, params=params, cache_salt=salt
            )
        )
    while engine.has_work:
        for output in engine.step():
            _take(output, answers)
    return list(answers.values())


def _take(output: StepOutput, answers: dict[int, Answer]) -> None:
    if isinstance(output, SequenceFailure):
        raise EngineStartError(f"the test of its steps failed: {output.error}")
    if isinstance(output, PromptLogprobs):
        answers[output.sequence_id].of_prompt.extend(output.tokens)
    elif isinstance(output, TokenOutput):
        answers[output.sequence_id].token_ids.append(output.token_id)
        if output.logprobs is not None:
            answers[output.sequence_id].logprobs.append(output.logprobs)
