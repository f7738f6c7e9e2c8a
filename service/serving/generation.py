"""Runs the sequences of one request and turns their tokens into text.

Prompts in, `TextDelta`s out, in the order in which the tokens come. Knows no HTTP; framing is
`service.api`'s.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from engine.errors import EngineDeadError
from engine.outputs import FinishReason
from engine.transport.client import Submission
from loaders.checkpoint.rust_panics import panics_as
from service.text.errors import broken_tokenizer
from service.text.text_stream import TextStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.outputs import TokenOutput
    from engine.request import Terms
    from engine.sampling_params import SamplingParams
    from service.serving.served_model import ServedModel, TokenStream


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready to run."""

    token_ids: Sequence[int]
    echo: str = ""  # what each answer's text begins with


@dataclass(frozen=True, slots=True)
class PlannedChoice:
    """One answer asked for; its index is its place in the list of all."""

    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one step adds to one choice."""

    index: int  # of the choice
    text: str
    finish_reason: FinishReason | None  # set on a choice's last delta only


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and made by one request."""

    prompt_tokens: int
    completion_tokens: int


Deliver: TypeAlias = "Callable[[TextDelta], Awaitable[None]]"


_groups = itertools.count()


def submit(
    model: ServedModel,
    choices: Sequence[PlannedChoice],
    stop_strings: Sequence[str],
    *,
    terms: Terms,
) -> Generation:
    """Submit every choice, so that what the engine refuses is known before an answer begins.

    Raises what `TokenEngine.submit` raises.
    """
    groups = {id(choice.prompt): next(_groups) for choice in choices}
    streams = model.engine.submit(
        [
            Submission(choice.prompt.token_ids, choice.params, groups[id(choice.prompt)])
            for choice in choices
        ],
        terms=terms,
    )
    return Generation(model, [choice.prompt for choice in choices], streams, stop_strings)


class Generation:
    """The sequences of one request, running side by side; made by `submit`."""

    def __init__(
        self,
        model: ServedModel,
        prompts: Sequence[Prompt],
        streams: Sequence[TokenStream],
        stop_strings: Sequence[str],
    ) -> None:
        self._model = model
        self._prompts = prompts  # of each stream
        self._streams = streams
        self._stop_strings = stop_strings
        self._num_completion_tokens = 0

    @property
    def num_choices(self) -> int:
        return len(self._streams)

    @property
    def usage(self) -> Usage:
        """Return the tokens so far; a prompt counts once, however many choices it has."""
        distinct = {id(prompt): len(prompt.token_ids) for prompt in self._prompts}
        return Usage(sum(distinct.values()), self._num_completion_tokens)

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

    async def aclose(self) -> None:
        """Abort what still runs."""
        for stream in self._streams:
            await stream.aclose()

    async def _run_safely(self, index: int, deliver: Deliver) -> None:
        with panics_as(broken_tokenizer):  # around all tokens, as it costs 1 µs
            await self._run_choice(index, deliver)

    async def _run_choice(self, index: int, deliver: Deliver) -> None:
        prompt, stream = self._prompts[index], self._streams[index]
        text = TextStream(
            self._model.tokenizer,
            prompt.token_ids,
            stop_strings=self._stop_strings,
            stop_token_ids=self._model.stop_token_ids,
        )
        async with aclosing(stream):  # leaving early, as a stop string does, aborts the sequence
            if prompt.echo:
                await deliver(TextDelta(index, prompt.echo, None))
            while outputs := await stream.take():
                piece, reason = self._read(outputs, text)
                if piece or reason is not None:
                    await deliver(TextDelta(index, piece, reason))
                if reason is not None:
                    return
        raise EngineDeadError("the engine ended a sequence without a reason")

    def _read(
        self, outputs: Sequence[TokenOutput], text: TextStream
    ) -> tuple[str, FinishReason | None]:
        """Return the text of what has come, and why the choice ends if it does.

        Several outputs come together only where drafts were right, or the reader was slower than
        the engine.
        """
        piece = ""
        reason: FinishReason | None = None
        for output in outputs:
            self._num_completion_tokens += 1
            piece += text.push(output.token_id)
            reason = output.finish_reason
            if reason is not None:
                piece += text.flush()
            if text.stopped:
                reason = FinishReason.STOP
                break
        return piece, reason
