"""Writes the answer of POST /infill, whole or as a stream.

A stream's events are put together from bytes, as on the other APIs; tests hold them against
`service.api.llama_cpp.answer_models`, byte by byte.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from engine.outputs import FinishReason
from service.api.error_responses import error_body
from service.api.frames import KEEP_ALIVE
from service.api.json_encoding import encode_json, encode_text
from service.api.llama_cpp.answer_models import (
    CutCounts,
    GenerationSettings,
    InfillAnswer,
    LikelyToken,
    ReportedToken,
    SamplingSettings,
    Timings,
)
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.sampling_params import SamplingParams
    from service.api.llama_cpp.fields import InfillRequest
    from service.serving.answer_tokens import AnswerToken
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.served_model import ServedModel


class InfillWriter:
    """Writes the answer to one request."""

    def __init__(
        self, request: InfillRequest, model: ServedModel, prompt_text: str | None = None
    ) -> None:
        """prompt_text: the prompt as the model sees it, where it is told."""
        self._request = request
        self._model = model
        self._prompt_text = prompt_text

    def whole(self, generation: Generation, choices: Sequence[CompleteChoice]) -> InfillAnswer:
        """Return an answer that is not streamed."""
        choice = choices[0]
        fields: dict[str, Any] = {"content": choice.text, "tokens": list(choice.token_ids)}
        fields |= self.last_fields(
            generation,
            choice.finish_reason,
            choice.stop_reason,
            has_new_line="\n" in choice.text,
        )
        if self._request.num_probs:
            fields["completion_probabilities"] = self.reported_tokens(choice.tokens)
        return self.selected(fields)

    def frames(self, generation: Generation) -> InfillFrames:
        """Return the frames of an answer that is streamed."""
        return InfillFrames(self, self._request, generation)

    def last_fields(
        self,
        generation: Generation,
        finish_reason: FinishReason,
        stop_reason: str | int | None,
        *,
        has_new_line: bool,
    ) -> dict[str, Any]:
        """Return what is told once the answer is at its end."""
        usage, prompt = generation.usage, generation.prompt_of(0)
        num_tokens = usage.prompt_tokens + usage.completion_tokens
        is_full = finish_reason is FinishReason.LENGTH and (
            num_tokens >= self._model.engine.max_model_len
        )
        is_word = isinstance(stop_reason, str)
        end = "limit" if finish_reason is FinishReason.LENGTH else "word" if is_word else "eos"
        fields = {
            "index": 0,
            "stop": True,
            "model": self._model.name,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": self._settings(generation.params_of(0)),
            "has_new_line": has_new_line,
            "truncated": bool(prompt.cut) or is_full,
            "tokens_cut": CutCounts(**dataclasses.asdict(prompt.cut)),
            "stop_type": end,
            "stopping_word": stop_reason if is_word else "",
            "tokens_cached": usage.cached_tokens,
            "timings": timings_of(generation),
        }
        if self._prompt_text is not None:
            fields["prompt"] = self._prompt_text
        return fields

    def selected(self, fields: Mapping[str, Any]) -> InfillAnswer:
        """Return an answer with the fields that were asked for."""
        answer = InfillAnswer(**fields)
        if self._request.response_fields is None:
            return answer
        whole = answer.model_dump(exclude_unset=True)
        return InfillAnswer.model_validate(select(whole, self._request.response_fields))

    def reported_tokens(self, tokens: Sequence[AnswerToken]) -> list[ReportedToken]:
        """Tell each token's logprob, and the likeliest ones."""
        texts, num_top = TokenTexts(self._model.tokenizer), self._request.num_probs
        return [
            ReportedToken(
                **_likely(token.token_id, token.logprobs.logprob, texts),
                top_logprobs=[
                    LikelyToken(**_likely(token_id, logprob, texts))
                    for token_id, logprob in token.logprobs.top[:num_top]
                ],
            )
            for token in tokens
            if token.logprobs is not None
        ]

    def _settings(self, params: SamplingParams) -> GenerationSettings:
        request = self._request
        return GenerationSettings(
            **sampling_settings(params).model_dump(),
            n_predict=0 if request.value_of("n_predict") == 0 else params.max_tokens,
            stop=request.stop or [],
            n_indent=request.n_indent or 0,
            n_probs=request.num_probs,
            stream=request.is_stream,
            timings_per_token=bool(request.timings_per_token),
        )


class InfillFrames:
    """Makes the server-sent events of one answer; the last one is whole but for the text."""

    keep_alive = KEEP_ALIVE

    def __init__(
        self, writer: InfillWriter, request: InfillRequest, generation: Generation
    ) -> None:
        self._writer = writer
        self._request = request
        self._generation = generation
        self._last: TextDelta | None = None
        self._has_new_line = False
        self._num_prompt = str(generation.usage.prompt_tokens).encode()

    def start(self, index: int) -> bytes:  # noqa: ARG002
        """Return nothing: an answer has no opening."""
        return b""

    def delta(self, delta: TextDelta) -> bytes:
        """Return the event of one delta."""
        self._has_new_line = self._has_new_line or "\n" in delta.text
        if delta.finish_reason is not None:
            self._last = delta
        if not (delta.text or delta.tokens or delta.token_ids):
            return b""
        num_predicted = str(self._generation.usage.completion_tokens).encode()
        event = b'data: {"index":0,"content":' + encode_text(delta.text) + b',"tokens":'
        event += encode_json(list(delta.token_ids)).encode() + b',"stop":false,"tokens_predicted":'
        event += num_predicted + b',"tokens_evaluated":' + self._num_prompt
        return event + self._details(delta) + b"}\n\n"

    def end(self) -> bytes:
        """Return the last event, which tells all but the text."""
        if self._last is None or self._last.finish_reason is None:
            return b""
        fields: dict[str, Any] = {"content": "", "tokens": []}
        fields |= self._writer.last_fields(
            self._generation,
            self._last.finish_reason,
            self._last.stop_reason,
            has_new_line=self._has_new_line,
        )
        answer = self._writer.selected(fields)
        return b"data: " + answer.model_dump_json(exclude_unset=True).encode() + b"\n\n"

    def error(self, error: Exception) -> bytes:
        """Return what ends a stream that failed."""
        return b"data: " + encode_json(error_body(error)).encode() + b"\n\n"

    def _details(self, delta: TextDelta) -> bytes:
        details = b""
        if self._request.timings_per_token:
            details += b',"timings":' + timings_of(self._generation).model_dump_json().encode()
        if self._request.num_probs and delta.tokens:
            reported = b",".join(
                t.model_dump_json().encode() for t in self._writer.reported_tokens(delta.tokens)
            )
            details += b',"completion_probabilities":[' + reported + b"]"
        return details


def select(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the named fields under those names; a name with slashes leads into objects."""
    found: dict[str, Any] = {}
    for name in names:
        value: Any = fields
        for part in name.split("/"):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            found[name] = value
    return found


def sampling_settings(params: SamplingParams) -> SamplingSettings:
    """Tell in llama.cpp's words how tokens are picked."""
    return SamplingSettings(
        seed=-1 if params.seed is None else params.seed,
        temperature=params.temperature,
        top_k=params.top_k or 0,
        top_p=params.top_p,
        min_p=params.min_p,
        typical_p=params.typical_p,
        repeat_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=list(params.logit_bias.items()),
        ignore_eos=params.ignore_eos,
    )


def timings_of(generation: Generation) -> Timings:
    """Return how long an answer took so far."""
    usage, times = generation.usage, generation.times_of(0)
    prompt_n, prompt_ms = usage.prompt_tokens - usage.cached_tokens, times.prompt_s * 1000
    predicted_n, predicted_ms = usage.completion_tokens, times.text_s * 1000
    return Timings(
        cache_n=usage.cached_tokens,
        prompt_n=prompt_n,
        prompt_ms=prompt_ms,
        prompt_per_token_ms=_ratio(prompt_ms, prompt_n),
        prompt_per_second=_ratio(prompt_n, times.prompt_s),
        predicted_n=predicted_n,
        predicted_ms=predicted_ms,
        predicted_per_token_ms=_ratio(predicted_ms, predicted_n),
        predicted_per_second=_ratio(predicted_n, times.text_s),
    )


_ABSENT = object()


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _likely(token_id: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    return {
        "id": token_id,
        "token": texts.text(token_id),
        "bytes": list(texts.raw_bytes(token_id)),
        "logprob": logprob,
    }
