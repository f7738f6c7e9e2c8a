"""Writes what text-generation-inference answers, whole or as a stream.

A stream's frames are put together from bytes; tests compare them with the typed chunk of
`service.api.tgi.answer_models`, byte by byte. There is one frame a token, and none to end the
stream: its last token's frame does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.outputs import FinishReason
from service.api.error_responses import tgi_error_body
from service.api.frames import KEEP_ALIVE
from service.api.json_encoding import encode_json, encode_numbers, encode_text
from service.api.tgi.answer_models import (
    BestOfSequence,
    Details,
    GeneratedText,
    GeneratedTexts,
    PrefillToken,
    Reason,
    StreamDetails,
    Token,
)
from service.serving.sampling import seed_of
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.api.tgi.parameters import GenerationParameters
    from service.serving.answer_tokens import AnswerToken
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.served_model import ServedModel


class TgiTokens:
    """Describes tokens as TGI does."""

    def __init__(self, model: ServedModel) -> None:
        self.texts = TokenTexts(model.tokenizer)
        self._ends = model.stop_token_ids

    def is_special(self, token_id: int) -> bool:
        """Whether a token is left out of texts; not every end piece is marked so."""
        return token_id in self._ends or self.texts.is_special(token_id)

    def text_of(self, token_id: int, shown: str) -> str:
        """Return a token's text; shown: its part of the answer's."""
        return shown or (self.texts.text(token_id) if self.is_special(token_id) else "")

    def shown(self, tokens: Sequence[AnswerToken], text: str, start: int = 0) -> list[str]:
        """Return each token's part of a text that begins at character `start` of the answer."""
        return [text[token.offset - start : token.end - start] for token in tokens]

    def shown_last(self, tokens: Sequence[AnswerToken], text: str, start: int = 0) -> list[str]:
        """Return the same where the text ends with these tokens: all of it is one's part."""
        parts = self.shown(tokens, text, start)
        rest = text[max(token.end for token in tokens) - start :]
        # A character that was never finished belongs to who began it, not to the end piece.
        own = [i for i, token in enumerate(tokens) if not self.is_special(token.token_id)]
        parts[own[-1] if own else -1] += rest
        return parts

    def top(self, token: AnswerToken, num_top: int) -> list[Token]:
        """Return the likeliest tokens at an answer's place."""
        likeliest = () if token.logprobs is None else token.logprobs.top[:num_top]
        return [
            Token(
                id=token_id,
                text=self.texts.text(token_id),
                logprob=logprob,
                special=self.is_special(token_id),
            )
            for token_id, logprob in likeliest
        ]


def reason_of(finish_reason: FinishReason, stop_reason: str | int | None) -> Reason:
    """Return why a text ends, in TGI's words."""
    if finish_reason is FinishReason.LENGTH:
        return "length"
    return "stop_sequence" if isinstance(stop_reason, str) else "eos_token"


@dataclass(frozen=True, slots=True)
class TgiAnswerForm:
    """What a request wants to be told."""

    inputs: str
    parameters: GenerationParameters
    seed: int | None  # that was drawn by; None where greedy

    @property
    def num_top(self) -> int:
        """How many likeliest tokens are told at each place."""
        return self.parameters.top_n_tokens or 0

    def full(self, text: str) -> str:
        """Return the text, behind its prompt where that is wanted."""
        return self.inputs + text if self.parameters.return_full_text else text


class TgiWriter:
    """Writes the answer to one request."""

    def __init__(self, form: TgiAnswerForm, model: ServedModel, *, is_list: bool = False) -> None:
        """is_list: whether a whole answer is a list of one."""
        self._form = form
        self._tokens = TgiTokens(model)
        self._is_list = is_list

    def whole(
        self,
        generation: Generation,  # noqa: ARG002 - other APIs count its tokens
        choices: Sequence[CompleteChoice],
    ) -> GeneratedText | GeneratedTexts:
        """Return an answer that is not streamed: the best of those that were made."""
        best = max(choices, key=lambda choice: choice.mean_logprob)
        answer = GeneratedText(generated_text=self._form.full(best.text))
        if self._form.parameters.reports_details:
            answer.details = self._details(best, [one for one in choices if one is not best])
        return GeneratedTexts([answer]) if self._is_list else answer

    def frames(self, generation: Generation) -> TgiFrames:
        """Return the frames of an answer that is streamed."""
        return TgiFrames(self._form, self._tokens, len(generation.prompt_of(0).token_ids))

    def _details(self, best: CompleteChoice, others: Sequence[CompleteChoice]) -> Details:
        details = Details(**self._details_fields(best))
        if others:
            details.best_of_sequences = [self._sequence(other) for other in others]
        return details

    def _sequence(self, choice: CompleteChoice) -> BestOfSequence:
        return BestOfSequence(
            generated_text=self._form.full(choice.text), **self._details_fields(choice)
        )

    def _details_fields(self, choice: CompleteChoice) -> dict[str, Any]:
        """Return what is told of any answer, as fields of its model."""
        shown = self._tokens.shown_last(choice.tokens, choice.text)
        fields: dict[str, Any] = {
            "finish_reason": reason_of(choice.finish_reason, choice.stop_reason),
            "generated_tokens": len(choice.tokens),
            "seed": seed_of(self._form.seed, choice.index),
            "prefill": self._prefill(choice),
            "tokens": [
                self._token(token, text) for token, text in zip(choice.tokens, shown, strict=True)
            ],
        }
        if self._form.num_top:
            fields["top_tokens"] = [
                self._tokens.top(token, self._form.num_top) for token in choice.tokens
            ]
        return fields

    def _token(self, token: AnswerToken, shown: str) -> Token:
        return Token(
            id=token.token_id,
            text=self._tokens.text_of(token.token_id, shown),
            logprob=logprob_of(token),
            special=self._tokens.is_special(token.token_id),
        )

    def _prefill(self, choice: CompleteChoice) -> list[PrefillToken]:
        if not self._form.parameters.decoder_input_details:
            return []
        logprobs = (None, *(found.logprob for found in choice.prompt_logprobs))
        return [
            PrefillToken(id=token_id, text=self._tokens.texts.text(token_id), logprob=logprob)
            for token_id, logprob in zip(choice.prompt.token_ids, logprobs, strict=True)
        ]


class TgiFrames:
    """Makes the server-sent events of one answer."""

    keep_alive = KEEP_ALIVE

    def __init__(self, form: TgiAnswerForm, tokens: TgiTokens, num_prompt_tokens: int) -> None:
        self._form = form
        self._tokens = tokens
        self._num_prompt_tokens = num_prompt_tokens
        self._num_reported = 0
        self._pieces: list[str] = []  # of the whole text
        self._tail = ""  # of the text, as far as its tokens have not been told
        self._tail_start = 0

    def start(self, index: int) -> bytes:  # noqa: ARG002 - there is one
        """Return what opens the answer: nothing."""
        return b""

    def delta(self, delta: TextDelta) -> bytes:
        """Return a frame for each token whose text is complete; the last one tells the whole."""
        self._pieces.append(delta.text)
        self._tail += delta.text
        if not delta.tokens:
            return b""
        is_last = delta.finish_reason is not None
        split = self._tokens.shown_last if is_last else self._tokens.shown
        shown = split(delta.tokens, self._tail, self._tail_start)
        frames = [self._token(token, text) for token, text in zip(delta.tokens, shown, strict=True)]
        reported = delta.tokens[-1].end - self._tail_start
        self._tail, self._tail_start = self._tail[reported:], delta.tokens[-1].end
        open_end = b',"generated_text":null,"details":null}\n\n'
        closing = self._last(delta) if is_last else open_end
        return open_end.join(frames) + closing

    def end(self) -> bytes:
        """Return what closes the stream: nothing."""
        return b""

    def error(self, error: Exception) -> bytes:
        """Return what ends a stream that failed."""
        return b"data:" + encode_json(tgi_error_body(error)).encode() + b"\n\n"

    def _token(self, token: AnswerToken, shown: str) -> bytes:
        self._num_reported += 1
        frame = b'data:{"index":%d,"token":{"id":%d,"text":' % (self._num_reported, token.token_id)
        frame += encode_text(self._tokens.text_of(token.token_id, shown))
        frame += b',"logprob":' + encode_numbers(logprob_of(token))
        frame += b',"special":true}' if self._is_special(token) else b',"special":false}'
        if self._form.num_top:
            top = self._tokens.top(token, self._form.num_top)
            reported = ",".join(one.model_dump_json() for one in top)
            frame += b',"top_tokens":[' + reported.encode() + b"]"
        return frame

    def _is_special(self, token: AnswerToken) -> bool:
        return self._tokens.is_special(token.token_id)

    def _last(self, delta: TextDelta) -> bytes:
        text = self._form.full("".join(self._pieces))
        closing = b',"generated_text":' + encode_text(text) + b',"details":'
        if delta.finish_reason is None or not self._form.parameters.details:
            return closing + b"null}\n\n"
        details = StreamDetails(
            finish_reason=reason_of(delta.finish_reason, delta.stop_reason),
            generated_tokens=self._num_reported,
            seed=self._form.seed,
            input_length=self._num_prompt_tokens,
        )
        return closing + details.model_dump_json().encode() + b"}\n\n"


def logprob_of(token: AnswerToken) -> float:
    """Return how likely a token was; 0 where the engine tells nothing of it."""
    return 0.0 if token.logprobs is None else token.logprobs.logprob
