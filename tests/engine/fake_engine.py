"""An engine without a model: each token follows from the one before it and its position.

Steps as the real one does: who has arrived joins the next step, one token a step each, no more than
`max_num_seqs` at once. Light to import, so that whole processes can run it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import BlockAccountingError, InvalidConstraintError
from engine.limits import SequenceLimits
from engine.outputs import (
    FinishReason,
    PromptLogprobs,
    SequenceFailure,
    SequenceStarted,
    TokenLogprobs,
    TokenOutput,
)
from engine.scheduling.admission import Admission
from engine.statistics import EngineStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.errors import EngineError
    from engine.outputs import StepOutput
    from engine.request import SequenceRequest

VOCAB_SIZE = 50
NUM_SPECIAL = 4  # the lowest ids, which no answer holds


def next_token(token_id: int, position: int, end: int) -> int:
    """What follows a token at a position; end: ids of answers are below it."""
    return NUM_SPECIAL + (token_id * 31 + position * 7 + 11) % (end - NUM_SPECIAL)


def expected_tokens(prompt: Sequence[int], num_tokens: int, end: int = VOCAB_SIZE) -> list[int]:
    """What a prompt must be answered with, whoever runs beside it."""
    tokens: list[int] = []
    last, position = prompt[-1], len(prompt) - 1
    while len(tokens) < num_tokens:
        last, position = next_token(last, position, end), position + 1
        tokens.append(last)
    return tokens


@dataclass(slots=True)
class Running:
    request: SequenceRequest
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FakeConstraint:
    """Remembers its grammar; this engine does not follow any."""

    grammar: str


class FakeEngine:
    def __init__(
        self,
        *,
        max_num_seqs: int = 4,
        max_model_len: int = 64,
        vocab_size: int = VOCAB_SIZE,
        answer_ids_end: int = VOCAB_SIZE,
        max_queued_seqs: int | None = None,
        step_s: float = 0.0,
        before_step: Callable[[], None] = lambda: None,
        fails: Callable[[SequenceRequest, int], EngineError | None] = lambda request, token: None,
        num_cached_tokens: Callable[[SequenceRequest], int] = lambda request: 0,
    ) -> None:
        self.limits = SequenceLimits(vocab_size, max_model_len)
        self.scheduler = self
        self.waiting: dict[int, SequenceRequest] = {}
        self.running: dict[int, Running] = {}
        self.callers: list[str] = []
        self.constraints: dict[int, FakeConstraint | None] = {}
        self.before_compile: Callable[[], None] = lambda: None
        self.num_steps = 0
        self.num_threads = 2
        self.queue_s = 0.0  # that each sequence is said to have waited
        self.leaks = False  # whether the accounting is wrong
        self.admission = Admission(max_queued_seqs=max_queued_seqs)
        self._max_num_seqs = max_num_seqs
        self._answer_ids_end = answer_ids_end
        self._step_s = step_s
        self._before_step = before_step
        self._fails = fails
        self._num_cached_tokens = num_cached_tokens
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def compile(self, request: SequenceRequest) -> FakeConstraint | None:
        self.before_compile()
        grammar = request.grammar
        if grammar is None:
            return None
        if grammar == "unreadable":
            raise InvalidConstraintError("this is no grammar")
        if grammar == "poison":
            raise ZeroDivisionError
        return FakeConstraint(grammar)

    def add(self, request: SequenceRequest, *, constraint: FakeConstraint | None = None) -> None:
        self.constraints[request.sequence_id] = constraint
        self.limits.check(request.prompt_token_ids, request.params)
        self.admission.check(len(request.prompt_token_ids))
        self.admission.enter(len(request.prompt_token_ids))
        self.waiting[request.sequence_id] = request
        self.callers.append(request.caller)

    def abort(self, sequence_id: int) -> None:
        self.running.pop(sequence_id, None)
        if (request := self.waiting.pop(sequence_id, None)) is not None:
            self.admission.leave(len(request.prompt_token_ids))

    def step(self) -> list[StepOutput]:
        self._before_step()
        self.num_steps += 1
        outputs = self._start()
        if self._step_s:
            time.sleep(self._step_s)
        for running in list(self.running.values()):
            outputs.append(self._advance(running))
        return outputs

    def _start(self) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        while self.waiting and len(self.running) < self._max_num_seqs:
            sequence_id, request = next(iter(self.waiting.items()))
            del self.waiting[sequence_id]
            self.admission.leave(len(request.prompt_token_ids))
            self.running[sequence_id] = Running(request)
            self._num_prompt_tokens += len(request.prompt_token_ids)
            if request.params.prompt_logprobs is not None:
                logprobs = tuple(TokenLogprobs(-1.0, ()) for _ in request.prompt_token_ids[1:])
                outputs.append(PromptLogprobs(sequence_id, logprobs))
            num_cached = self._num_cached_tokens(request)
            outputs.append(SequenceStarted(sequence_id, num_cached, self.queue_s))
        return outputs

    def _advance(self, running: Running) -> StepOutput:
        request, params = running.request, running.request.params
        prompt = request.prompt_token_ids
        last = running.tokens[-1] if running.tokens else prompt[-1]
        position = len(prompt) + len(running.tokens) - 1
        token = next_token(last, position, self._answer_ids_end)
        if (error := self._fails(request, token)) is not None:
            del self.running[request.sequence_id]
            return SequenceFailure(request.sequence_id, error)
        running.tokens.append(token)
        self._num_generated_tokens += 1
        reason = None
        if token in params.end_token_ids:
            reason = FinishReason.STOP
        elif len(running.tokens) == self.limits.max_output_tokens(len(prompt), params):
            reason = FinishReason.LENGTH
        if reason is not None:
            del self.running[request.sequence_id]
        logprobs = None if params.logprobs is None else TokenLogprobs(-0.5, ((token, -0.5),))
        return TokenOutput(request.sequence_id, token, logprobs, reason)

    def check(self) -> None:
        if self.leaks or (not self.has_work and self.admission.num_seqs):
            raise BlockAccountingError("3 blocks are owned by nobody")

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_queued_seqs=self.admission.num_seqs,
            num_queued_tokens=self.admission.num_tokens,
            num_free_slots=self._max_num_seqs - len(self.running),
            num_blocks=1,
            num_free_blocks=1,
            prefill_tokens_per_s=0.0,
            num_threads=self.num_threads,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=0,
            num_pauses=0,
            prefix_cache_queries=0,
            prefix_cache_hits=0,
            num_drafted_tokens=0,
            num_accepted_tokens=0,
        )
