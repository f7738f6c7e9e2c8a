"""Runs the sequences of one request and turns their tokens into text.

A `GenerationRequest` in, `TextDelta`s out, in the order in which the tokens come. Knows no HTTP;
framing is `service.api`'s.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, TypeAlias

from engine.errors import EngineDeadError, InvalidConstraintError
from engine.transport.client import Submission
from loaders.checkpoint.rust_panics import panics_as
from service.errors import InvalidFieldError
from service.grammars.errors import InvalidGrammarError
from service.serving.choice_reader import TextDelta, make_reader
from service.serving.generation_request import plan_choices
from service.serving.prompt_echo import PromptEcho
from service.serving.text_lanes import forms, run_in_lane
from service.text.errors import broken_tokenizer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.outputs import FinishReason, TokenLogprobs
    from engine.sampling_params import SamplingParams
    from engine.statistics import TokenTimes
    from engine.transport.backlog import Place
    from service.grammars.wanted import TextForm
    from service.serving.answer_tokens import AnswerToken
    from service.serving.choice_reader import ChoiceReader
    from service.serving.generation_request import GenerationRequest, PlannedChoice
    from service.serving.prompts import Prompt
    from service.serving.served_model import ServedModel, TokenStream


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and made by one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompts': known from earlier ones
    reasoning_tokens: int = 0  # of the completion's: thoughts, where they can be told apart


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """How long one answer has taken so far."""

    prompt_s: float  # from its submission to its first token, waiting in the queue included
    text_s: float  # from there to its last token


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


_groups = count()


async def start(
    model: ServedModel, request: GenerationRequest, place: Place | None = None
) -> Generation:
    """Submit every choice, so that what the engine refuses is known before an answer begins.

    place: what was reserved for them. Raises what `plan_choices` and `TokenEngine.submit` raise.
    """
    grammar = await _read(request.text_form)
    if request.options.bad_words:  # are encoded, which is not for the event loop
        size = sum(map(len, request.options.bad_words))
        choices = await run_in_lane(size, lambda: plan_choices(request, model))
    else:
        choices = plan_choices(request, model)
    with panics_as(broken_tokenizer):  # before anything runs that would have to be ended
        readers = [
            make_reader(index, choice, request.form, model) for index, choice in enumerate(choices)
        ]
    groups = {id(prompt): next(_groups) for prompt in request.prompts}
    streams = model.engine.submit(
        [
            Submission(choice.prompt.token_ids, choice.params, groups[id(choice.prompt)], grammar)
            for choice in choices
        ],
        terms=request.terms,
        place=place,
    )
    generation = Generation(choices, readers, streams, PromptEcho(model.tokenizer))
    if request.text_form is not None:
        await _until_accepted(generation, streams, request.text_form)
    return generation


async def _read(form: TextForm | None) -> str | None:
    """Return the grammar of a form, read beside the event loop. Raises InvalidFieldError."""
    if form is None:
        return None
    try:
        return await forms.run(form.grammar)
    except InvalidGrammarError as error:
        raise InvalidFieldError(f"{form.param}: {error}", param=form.param) from error


async def _until_accepted(
    generation: Generation, streams: Sequence[TokenStream], form: TextForm
) -> None:
    """Wait until the engine has read the grammar, so that a refusal is no broken answer."""
    try:
        for stream in streams:
            await stream.accepted()
    except InvalidConstraintError as error:
        await generation.aclose()
        raise InvalidFieldError(f"{form.param}: {error}", param=form.param) from error
    except BaseException:
        await generation.aclose()
        raise


class Generation:
    """The sequences of one request, running side by side; made by `start`."""

    def __init__(
        self,
        choices: Sequence[PlannedChoice],
        readers: Sequence[ChoiceReader],
        streams: Sequence[TokenStream],
        echo: PromptEcho,
    ) -> None:
        self._choices = choices
        self._echo = echo
        self._readers = readers
        self._streams = streams
        self._submitted_at = time.monotonic()

    @property
    def num_choices(self) -> int:
        return len(self._streams)

    @property
    def reports_prompts(self) -> bool:
        """Whether a choice's first delta holds as many tokens as its prompt."""
        return any(reader.reports_prompt for reader in self._readers)

    @property
    def usage(self) -> Usage:
        """Return the tokens so far; a prompt counts once, however many choices it has."""
        firsts = {
            id(choice.prompt): (len(choice.prompt.token_ids), stream.num_cached_tokens)
            for choice, stream in zip(reversed(self._choices), reversed(self._streams), strict=True)
        }
        return Usage(
            prompt_tokens=sum(num_tokens for num_tokens, _ in firsts.values()),
            completion_tokens=sum(reader.num_tokens for reader in self._readers),
            cached_tokens=sum(num_cached for _, num_cached in firsts.values()),
            reasoning_tokens=sum(reader.num_thought for reader in self._readers),
        )

    @property
    def times(self) -> Sequence[TokenTimes]:
        """Return when each choice's tokens came."""
        return [stream.times for stream in self._streams]

    @property
    def finish_reasons(self) -> Sequence[FinishReason | None]:
        """Return why each choice ended; None for one that has not, or not by itself."""
        return [reader.finish_reason for reader in self._readers]

    def prompt_of(self, index: int) -> Prompt:
        """Return a choice's prompt."""
        return self._choices[index].prompt

    def params_of(self, index: int) -> SamplingParams:
        """Return how a choice's tokens are picked."""
        return self._choices[index].params

    def times_of(self, index: int) -> AnswerTimes:
        """Return how long a choice has taken so far; its form must ask that it be timed."""
        reader = self._readers[index]
        if reader.first_token_at is None or reader.last_token_at is None:
            return AnswerTimes(time.monotonic() - self._submitted_at, 0.0)
        return AnswerTimes(
            prompt_s=reader.first_token_at - self._submitted_at,
            text_s=reader.last_token_at - reader.first_token_at,
        )

    def prompt_logprobs_of(self, index: int) -> Sequence[TokenLogprobs]:
        """Return what is told of a choice's prompt, from its first delta on."""
        return self._streams[index].prompt_logprobs

    async def run(self, deliver: Deliver) -> None:
        """Hand every delta to `deliver`; return once all choices have ended.

        A slow `deliver` holds up its own choice only. Cancelling aborts every sequence.
        """
        runs = [self._run_safely(reader, deliver) for reader in self._readers]
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
            tokens=list(chain.from_iterable(delta.tokens for delta in deltas)),
            token_ids=list(chain.from_iterable(delta.token_ids for delta in deltas)),
            prompt=self.prompt_of(index),
            prompt_logprobs=self.prompt_logprobs_of(index),
            mean_logprob=reader.sum_logprobs / max(reader.num_tokens, 1),
        )

    async def _run_safely(self, reader: ChoiceReader, deliver: Deliver) -> None:
        with panics_as(broken_tokenizer):  # around all tokens, as it costs 1 µs
            await self._run_choice(reader, deliver)

    async def _run_choice(self, reader: ChoiceReader, deliver: Deliver) -> None:
        stream = self._streams[reader.index]
        async with aclosing(stream):  # leaving early, as a stop string does, aborts the sequence
            if not reader.reports_prompt and (begun := reader.begin(())) is not None:
                await deliver(begun)
            outputs = await stream.take()
            if reader.reports_prompt and outputs:  # the prompt's logprobs are complete now
                prompt = self._choices[reader.index].prompt
                reader.begin(await self._echo.tokens_of(prompt, stream.prompt_logprobs))
            while outputs:
                delta = reader.read(outputs)
                if delta is not None:
                    await deliver(delta)
                    if delta.finish_reason is not None:
                        reader.finish_reason = delta.finish_reason
                        return
                outputs = await stream.take()
        raise EngineDeadError("the engine ended a sequence without a reason")
