"""Where the frames of a stream are made: those that tell of a whole prompt, beside the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.outputs import TokenLogprobs
from service.api.event_stream import EventStream, StreamTiming
from service.api.frames import KEEP_ALIVE, MAX_REPORTED_AT_ONCE
from service.api.scope import keep_send
from service.server.lifecycle import Lifecycle
from service.serving.generation import start
from service.serving.generation_request import AnswerForm, GenerationRequest
from service.serving.prompts import Prompt
from service.serving.sampling import SamplingOptions
from tests.service.fakes import ByteTokenizer, FakeEngine, FakeModels, says, served_model


class Frames:
    """Remembers which threads made the frames of how many tokens."""

    keep_alive = KEEP_ALIVE

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def start(self, index: int) -> bytes:
        return b""

    def delta(self, delta) -> bytes:
        self.made.append((len(delta.tokens), threading.get_ident()))
        return delta.text.encode()

    def end(self) -> bytes:
        return b""

    def error(self, error: Exception) -> bytes:
        raise error


@pytest.mark.parametrize("num_prompt", [2, MAX_REPORTED_AT_ONCE])
def test_frames_of_a_long_prompt_are_made_beside_the_event_loop_and_others_on_it(num_prompt):
    tokenizer, frames, body = ByteTokenizer(), Frames(), []
    engine = FakeEngine(
        says(tokenizer, "hi"),
        max_model_len=1024,
        logprobs=lambda token_id, params: TokenLogprobs(-1.0, ()),
    )
    text = "a" * num_prompt
    request = GenerationRequest(
        prompts=[Prompt(tokenizer.encode(text), text)],
        max_tokens=[9],
        options=SamplingOptions(logprobs=0, prompt_logprobs=0),
        form=AnswerForm(echoes=True, reports_tokens=True),
    )

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async def send(message) -> None:
        body.append(message.get("body", b""))

    async def run() -> None:
        model = served_model(engine, tokenizer)
        timing = StreamTiming(keep_alive_interval_s=15, stall_limit_s=30)
        stream = EventStream(
            await start(model, request),
            frames,
            lifecycle=Lifecycle(FakeModels(model)),
            timing=timing,
            headers={},
        )
        scope = {"type": "http"}
        keep_send(scope, send)
        await stream(scope, receive, send)

    asyncio.run(run())
    assert b"".join(body) == text.encode() + b"hi"
    (num_first, first), *others = frames.made
    is_long = num_prompt >= MAX_REPORTED_AT_ONCE
    assert num_first == num_prompt + 2  # the prompt's BOS, and the answer's first token
    assert (first != threading.get_ident()) is is_long
    assert {thread for _, thread in others} == {threading.get_ident()}
