"""Makes text deltas of one choice's tokens as they come; knows when the choice is at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.outputs import FinishReason
from service.serving.answer_tokens import AnswerToken, AnswerTokens
from service.serving.thought_tokens import ThoughtTokens
from service.text.indentation import Indentation
from service.text.text_stream import TextStream
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from engine.outputs import TokenOutput
    from service.serving.generation_request import AnswerForm, PlannedChoice
    from service.serving.served_model import ServedModel


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """What one step adds to one choice.

    One is made every token: as a frozen dataclass it cost 0.5 µs more (2026-11).
    """

    index: int  # of the choice
    text: str
    finish_reason: FinishReason | None  # set on a choice's last delta only
    # The caller's own stop string or id that ended it; None for the variant's own end.
    stop_reason: str | int | None = None
    tokens: Sequence[AnswerToken] = ()  # where they were asked for
    token_ids: Sequence[int] = ()  # where they were asked for: every one, as it comes


class ChoiceReader:
    """Read one choice's tokens; the plain case, of nothing but text."""

    reports_prompt = False  # whether its first delta reports the prompt's tokens
    num_tokens = 0  # generated so far
    num_thought = 0  # of those, the model's thoughts, where the form has them counted
    sum_logprobs = 0.0  # of those, where logprobs were asked for
    finish_reason: FinishReason | None = None  # once all of it was delivered
    # By the monotonic clock, where the answer is timed: when the first token came, and the last
    first_token_at: float | None = None
    last_token_at: float | None = None

    def __init__(
        self, index: int, choice: PlannedChoice, form: AnswerForm, model: ServedModel
    ) -> None:
        self.index = index
        self._choice = choice
        self._form = form
        ends = choice.params.end_token_ids
        if form.skips_special_tokens:  # also those that are ignored
            ends |= choice.params.eos_token_ids
        self._text = TextStream(
            model.tokenizer,
            choice.prompt.token_ids,
            stop_strings=form.stop_strings,
            # Not every end piece is marked special; none is text unless it is asked for.
            stop_token_ids=frozenset() if form.keeps_stop else ends,
            keep_stop_string=form.keeps_stop or form.keeps_stop_string,
            skip_special_tokens=form.skips_special_tokens,
            kept_token_ids=form.kept_token_ids,
            min_tokens=choice.params.min_tokens,
        )

    def begin(self, prompt_tokens: Sequence[AnswerToken]) -> TextDelta | None:  # noqa: ARG002
        """Return what is told before any token of the answer.

        prompt_tokens: where the reader reports the prompt, else none.
        """
        echo = self._choice.prompt.text if self._form.echoes else ""
        return TextDelta(self.index, echo, None) if echo else None

    def read(self, outputs: Sequence[TokenOutput]) -> TextDelta | None:
        """Return what these outputs add; None where that is nothing to tell yet.

        Several come together only where drafts were right, or the reader was slower than the
        engine.
        """
        piece = ""
        reason: FinishReason | None = None
        for output in outputs:
            self.num_tokens += 1
            piece += self._text.push(output.token_id)
            reason = output.finish_reason
            if reason is not None:
                piece += self._text.flush()
            if self._text.stopped:
                reason = FinishReason.STOP
                break
        if reason is None:
            return TextDelta(self.index, piece, None) if piece else None
        return TextDelta(self.index, piece, reason, self._stop_reason(output))

    def _stop_reason(self, last: TokenOutput) -> str | int | None:
        if self._text.stopped:
            return self._text.stop_string
        is_own = last.finish_reason is FinishReason.STOP and (
            last.token_id in self._choice.params.stop_token_ids
        )
        return last.token_id if is_own else None


class DetailedReader(ChoiceReader):
    """Read one choice's tokens, and tell of them beside the text; or end it when its time is up."""

    def __init__(
        self,
        index: int,
        choice: PlannedChoice,
        form: AnswerForm,
        model: ServedModel,
    ) -> None:
        super().__init__(index, choice, form, model)
        self._tokenizer = model.tokenizer
        self.reports_prompt = form.echoes and form.reports_tokens
        self._prompt_tokens: Sequence[AnswerToken] = ()
        self._num_sent = len(choice.prompt.text) if form.echoes else 0
        self._tokens = AnswerTokens(self._num_sent)
        self._deadline: float | None = None  # of the text, once it has begun
        self._indentation = Indentation(form.min_indent) if form.min_indent else None

    def begin(self, prompt_tokens: Sequence[AnswerToken]) -> TextDelta | None:
        """Return what is told before any token; an echo with tokens comes with the first one."""
        self._prompt_tokens = prompt_tokens
        return None if self._form.reports_tokens else super().begin(prompt_tokens)

    def read(self, outputs: Sequence[TokenOutput]) -> TextDelta | None:
        """Return what these outputs add; None where that is nothing to tell yet."""
        self._note_time()
        echo, reported = self._echo() if self.num_tokens == 0 else ("", ())
        if self._choice.is_prompt_only:
            return TextDelta(self.index, echo, FinishReason.LENGTH, None, reported)
        piece, reason, ids = "", None, []
        for output in outputs:
            ids.append(output.token_id)
            text = self._push(output)
            reason = output.finish_reason
            if reason is None and self._is_time_up():
                reason = FinishReason.LENGTH
            if reason is not None:
                text += self._text.flush()
            if self._text.stopped:
                reason = FinishReason.STOP
            piece += self._indented(text, is_last=reason is not None)
            if self._is_outdented:
                reason = FinishReason.LENGTH
            if reason is not None:
                break
        self._num_sent += len(piece)
        if self._form.reports_tokens:
            reported = [*reported, *self._released(is_last=reason is not None)]
        ids = ids if self._form.reports_token_ids else []
        if reason is None:
            if not (echo or piece or reported or ids):
                return None
            return TextDelta(self.index, echo + piece, None, None, reported, ids)
        why = None if self._is_outdented else self._stop_reason(output)
        return TextDelta(self.index, echo + piece, reason, why, reported, ids)

    @property
    def _is_outdented(self) -> bool:
        """Whether a line that was indented too little has ended the text."""
        return self._indentation is not None and self._indentation.is_over

    def _note_time(self) -> None:
        self.last_token_at = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = self.last_token_at

    def _indented(self, text: str, *, is_last: bool) -> str:
        """Return what may be sent of a text, as far as the lines' indentation decides."""
        if self._indentation is None:
            return text
        sent = self._indentation.push(text)
        return sent + self._indentation.flush() if is_last else sent

    def _push(self, output: TokenOutput) -> str:
        self.num_tokens += 1
        begin = self._text.num_chars
        piece = self._text.push(output.token_id)
        if output.logprobs is not None:
            self.sum_logprobs += output.logprobs.logprob
        form = self._form
        reports_ends = form.keeps_stop or form.reports_ends
        is_hidden_end = output.finish_reason is FinishReason.STOP and not reports_ends
        if form.reports_tokens and not is_hidden_end:
            self._tokens.add(output.token_id, output.logprobs, begin, self._text.num_chars)
        return piece

    def _released(self, *, is_last: bool) -> list[AnswerToken]:
        if not is_last:
            return self._tokens.take(self._num_sent)
        if self._text.stopped or self._is_outdented:
            return self._tokens.take_until(self._num_sent, TokenTexts(self._tokenizer).raw_bytes)
        return self._tokens.take_rest()

    def _echo(self) -> tuple[str, Sequence[AnswerToken]]:
        """Return the prompt's text and tokens, where they come with the first of the answer."""
        if not self.reports_prompt:
            return "", ()
        return self._choice.prompt.text, self._prompt_tokens

    def _is_time_up(self) -> bool:
        """Whether the last token holds a line's end, and came behind the time limit."""
        limit_s, now = self._form.max_seconds_of_text, self.last_token_at
        if limit_s is None or now is None:
            return False
        if self._deadline is None:
            self._deadline = now + limit_s
        return now >= self._deadline and "\n" in self._text.last_text


class ThinkingReader(ChoiceReader):
    """Read one choice's tokens, and count those of its thoughts."""

    def __init__(
        self, index: int, choice: PlannedChoice, form: AnswerForm, model: ServedModel
    ) -> None:
        super().__init__(index, choice, form, model)
        self._texts = TokenTexts(model.tokenizer)
        self._thoughts = (
            ThoughtTokens(form.thought_marks, self._bytes_of)
            if form.thought_marks is not None
            else None
        )

    def read(self, outputs: Sequence[TokenOutput]) -> TextDelta | None:
        """Return what these outputs add; None where that is nothing to tell yet."""
        num_before = self.num_tokens
        delta = super().read(outputs)
        thoughts = self._thoughts
        if thoughts is not None:
            for output in outputs[: self.num_tokens - num_before]:
                if output.finish_reason is not FinishReason.STOP:
                    thoughts.push(output.token_id)
            if delta is not None and delta.finish_reason is not None:
                thoughts.flush()
            self.num_thought = thoughts.num_tokens
            if thoughts.is_over:
                self._thoughts = None
        return delta

    def _bytes_of(self, token_id: int) -> bytes:
        """Return what a token adds to the text; of special ones only those that it shows."""
        form = self._form
        is_hidden = form.skips_special_tokens and token_id not in form.kept_token_ids
        if is_hidden and self._texts.is_special(token_id):
            return b""
        return self._texts.raw_bytes(token_id)


class DetailedThinkingReader(ThinkingReader, DetailedReader):
    """Do both."""


def make_reader(
    index: int,
    choice: PlannedChoice,
    form: AnswerForm,
    model: ServedModel,
) -> ChoiceReader:
    """Return the reader that a choice needs: the plain one costs least a token."""
    is_detailed = (
        form.reports_tokens
        or form.reports_token_ids
        or form.max_seconds_of_text is not None
        or form.min_indent > 0
        or form.is_timed
        or choice.is_prompt_only
        or choice.params.logprobs is not None
    )
    kinds = {
        (False, False): ChoiceReader,
        (True, False): DetailedReader,
        (False, True): ThinkingReader,
        (True, True): DetailedThinkingReader,
    }
    kind = kinds[is_detailed, form.thought_marks is not None]
    return kind(index, choice, form, model)
