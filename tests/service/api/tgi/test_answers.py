"""The bytes of a stream are what the typed models encode."""

from __future__ import annotations

import pytest

from engine.errors import QueueFullError
from engine.outputs import FinishReason, TokenLogprobs
from service.api.tgi.answer_models import Reason, StreamedToken
from service.api.tgi.answers import (
    TgiAnswerForm,
    TgiFrames,
    TgiTokens,
    reason_of,
)
from service.api.tgi.parameters import GenerationParameters
from service.serving.answer_tokens import AnswerToken
from service.serving.choice_reader import TextDelta
from tests.service.fakes import LIMITS, ByteTokenizer, FakeEngine, says, served_model


def frames(**parameters: object) -> TgiFrames:
    tokenizer = ByteTokenizer()
    model = served_model(FakeEngine(says(tokenizer, "")), tokenizer)
    asked = GenerationParameters.model_validate(parameters, context=LIMITS)
    return TgiFrames(TgiAnswerForm("Hi ", asked, seed=7), TgiTokens(model), 3)


def token(text: str, offset: int, token_id: int = 80) -> AnswerToken:
    logprobs = TokenLogprobs(-1e-7, ((80, -0.5), (1, -1.5)))
    return AnswerToken(token_id, logprobs, offset, offset + len(text))


@pytest.mark.parametrize("parameters", [{}, {"details": True, "top_n_tokens": 2}])
def test_frames_are_what_the_typed_models_encode(parameters):
    made = frames(**parameters)
    written = made.start(0)
    written += made.delta(TextDelta(0, 'a"', None, tokens=[token('a"', 0)]))
    written += made.delta(TextDelta(0, "\u2028\x00", None))  # its tokens come later
    rest = [token("\u2028", 2), token("\x00é", 3), token("", 5, token_id=1)]
    written += made.delta(TextDelta(0, "é", FinishReason.STOP, tokens=rest)) + made.end()
    blocks = written.split(b"\n\n")
    assert blocks.pop() == b""
    assert len(blocks) == 4
    events = [StreamedToken.model_validate_json(block.removeprefix(b"data:")) for block in blocks]
    assert [event.token.text for event in events] == ['a"', "\u2028", "\x00é", "</s>"]
    assert events[-1].generated_text == 'a"\u2028\x00é'
    assert (events[-1].details is not None) == bool(parameters)
    for block, event in zip(blocks, events, strict=True):
        assert block == b"data:" + event.model_dump_json(exclude_unset=True).encode()


def test_error_frame_is_one_event():
    error = QueueFullError("full", retry_after_s=1)
    assert frames().error(error) == b'data:{"error":"full","error_type":"overloaded"}\n\n'


@pytest.mark.parametrize(
    ("finish", "stop", "reason"),
    [
        (FinishReason.LENGTH, None, "length"),
        (FinishReason.STOP, None, "eos_token"),
        (FinishReason.STOP, "x", "stop_sequence"),
    ],
)
def test_reasons_have_tgis_words(finish: FinishReason, stop: str | None, reason: Reason):
    assert reason_of(finish, stop) == reason
