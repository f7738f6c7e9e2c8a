"""Runs the sequences of one request and turns their tokens into text.

A `GenerationRequest` in, `TextDelta`s out, in the order in which the tokens come. Knows no HTTP;
framing is `service.api`'s.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from engine.errors import EngineDeadError
from engine.transport.client import Submission
from loaders.checkpoint.rust_panics import panics_as
from service.serving.choice_reader import TextDelta, make_reader
from service.serving.generation_request import plan_choices
from service.text.errors import broken_tokenizer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.outputs import FinishReason, TokenLogprobs
    from service.serving.answer_tokens import AnswerToken
    from service.serving.choice_reader import ChoiceReader
    from service.serving.generation_request import AnswerForm, GenerationRequest, PlannedChoice
    from service.serving.prompts import Prompt
    from service.serving.served_model import ServedModel, TokenStream


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and made by one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompts': known from earlier ones


@dataclass(frozen=True, slots=True)
class CompleteChoice:
    """One choice that has come to its end."""

    index: int
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None
    tokens: Sequence[AnswerToken]
    token_ids: Sequence[int]
    prompt: Prompt
    prompt_logprobs: Sequence[TokenLogprobs]  # of each token of the prompt but the first
    mean_logprob: float  # of its tokens, where logprobs were asked for


Deliver: TypeAlias = "Callable[[TextDelta], Awaitable[None]]"


_groups = itertools.count()


def submit(model: ServedModel, request: GenerationRequest) -> Generation:
    """Submit every choice, so that what the engine refuses is known before an answer begins.

    Raises what `plan_choices` and `TokenEngine.submit` raise.
    """
    return _submit(model, request, plan_choices(request, model))


async def submit_beside(model: ServedModel, request: GenerationRequest) -> Generation:
    """Submit like `submit`; what takes long to plan is planned in a thread.

    Many bad words may take a second to spell out.
    """
    if not request.options.bad_words:
        return submit(model, request)
    choices = await asyncio.to_thread(plan_choices, request, model)
    return _submit(model, request, choices)


def _submit(
    model: ServedModel, request: GenerationRequest, choices: Sequence[PlannedChoice]
) -> Generation:
    groups = {id(prompt): next(_groups) for prompt in request.prompts}
    streams = model.engine.submit(
        [
            Submission(choice.prompt.token_ids, choice.params, groups[id(choice.prompt)])
            for choice in choices
        ],
        terms=request.terms,
    )
    return Generation(model, choices, streams, request.form)


class Generation:
    """The sequences of one request, running side by side; made by `submit`."""

    def __init__(
        self,
        model: ServedModel,
        choices: Sequence[PlannedChoice],
        streams: Sequence[TokenStream],
        form: AnswerForm,
    ) -> None:
        self._model = model
        self._choices = choices
        self._streams = streams
        self._form = form
        self._readers: dict[int, ChoiceReader] = {}  # by index, of those that have begun

    @property
    def num_choices(self) -> int:
        return len(self._streams)

    @property
    def usage(self) -> Usage:
        """Return the tokens so far; a prompt counts once, however many choices it has."""
        firsts = {
            id(choice.prompt): (len(choice.prompt.token_ids), stream.num_cached_tokens)
            for choice, stream in zip(reversed(self._choices), reversed(self._streams), strict=True)
        }
        return Usage(
            prompt_tokens=sum(num_tokens for num_tokens, _ in firsts.values()),
            completion_tokens=sum(reader.num_tokens for reader in self._readers.values()),
            cached_tokens=sum(num_cached for _, num_cached in firsts.values()),
        )

    def prompt_of(self, index: int) -> Prompt:
        """Return a choice's prompt."""
        return self._choices[index].prompt

    def prompt_logprobs_of(self, index: int) -> Sequence[TokenLogprobs]:
        """Return what is told of a choice's prompt, from its first delta on."""
        return self._streams[index].prompt_logprobs

    async def run(self, deliver: Deliver) -> None:
        """Hand every delta to `deliver`; return once all choices have ended.

        A slow `deliver` holds up its own choice only. Cancelling aborts every sequence.
        """
        runs = [self._run_safely(index, deliver) for index in range(len(self._streams))]
        if len(runs) == 1:  # the usual case needs no task of its own
            await runs[0]
            return
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run)

    async def collect(self) -> list[CompleteChoice]:
        """Run to the end; return the choices in the order of their index."""
        deltas: list[list[TextDelta]] = [[] for _ in self._choices]

        async def keep(delta: TextDelta) -> None:
            deltas[delta.index].append(delta)

        await self.run(keep)
        return [self._complete(index, of_choice) for index, of_choice in enumerate(deltas)]

    async def aclose(self) -> None:
        """Abort what still runs."""
        for stream in self._streams:
            await stream.aclose()

    def _complete(self, index: int, deltas: Sequence[TextDelta]) -> CompleteChoice:
        last, reader = deltas[-1], self._readers[index]
        if last.finish_reason is None:
            raise EngineDeadError("the engine ended a sequence without a reason")
        return CompleteChoice(
            index=index,
            text="".join(delta.text for delta in deltas),
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            tokens=[token for delta in deltas for token in delta.tokens],
            token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
            prompt=self.prompt_of(index),
            prompt_logprobs=self.prompt_logprobs_of(index),
            mean_logprob=reader.sum_logprobs / max(reader.num_tokens, 1),
        )

    async def _run_safely(self, index: int, deliver: Deliver) -> None:
        with panics_as(broken_tokenizer):  # around all tokens, as it costs 1 µs
            await self._run_choice(index, deliver)

    async def _run_choice(self, index: int, deliver: Deliver) -> None:
        stream = self._streams[index]
        async with aclosing(stream):  # leaving early, as a stop string does, aborts the sequence
            reader = self._readers[index] = make_reader(
                index, self._choices[index], self._form, self._model, stream.prompt_logprobs
            )
            if (begun := reader.begin()) is not None:
                await deliver(begun)
            while outputs := await stream.take():
                delta = reader.read(outputs)
                if delta is not None:
                    await deliver(delta)
                    if delta.finish_reason is not None:
                        return
        raise EngineDeadError("the engine ended a sequence without a reason")
