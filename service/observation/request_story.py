"""What one request's record says at its end: its outcome, its tokens, where its time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.statistics import TokenTimes
    from service.observation.request_record import ObservedGeneration, RequestRecord

ANSWERED = "ok"  # of what was answered and makes no text
CLIENT_GONE = "client_gone"
CUT_OFF = "cut_off"  # by the server's end
STALLED = "stalled_reader"
INTERNAL = "internal_error"

# A choice's, beside those of `engine.outputs.FinishReason`; vLLM's words.
ABORTED = "abort"
FAILED = "error"
_ABORTS = frozenset({CLIENT_GONE, CUT_OFF, STALLED})

# What the router refuses has no code.
_CODES = {404: "not_found", 405: "method_not_allowed"}
CLIENT_GONE_STATUS = 499  # nginx's number for who left before an answer began


@dataclass(frozen=True, slots=True)
class TokenStory:
    """What a generation came to; times are of the choice that waited longest."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    choice_ends: tuple[str, ...]  # why each choice ended
    submitted_at: float
    queue_s: float | None  # as the engine tells it; None for what never left the queue
    first_token_s: float | None  # from the submission on; None where none came
    decode_s: float  # from the last choice's first token to the last token of all
    longest_gap_s: float  # between two tokens of a choice
    tokens_per_s: float | None  # from the first token on, all choices together


@dataclass(frozen=True, slots=True)
class RequestStory:
    """What a request came to."""

    status: int  # also of who left before there was one
    outcome: str
    total_s: float
    tokens: TokenStory | None  # None where nothing was generated

    def is_slow(self, limit_s: float) -> bool:
        """Whether all but decoding took longer, or a single token did.

        So a long answer is not slow, however long it takes at its own pace.
        """
        tokens = self.tokens
        if tokens is None:
            return self.total_s > limit_s
        return max(self.total_s - tokens.decode_s, tokens.longest_gap_s) > limit_s


def tell(record: RequestRecord, ended: float) -> RequestStory:
    """Say what a request came to that has ended now."""
    status = CLIENT_GONE_STATUS if record.status is None else record.status
    generation = record.generation
    tokens = None if generation is None else _tell_tokens(generation, record.failure)
    return RequestStory(status, _outcome(record, status, tokens), ended - record.started, tokens)


def comes_again(record: RequestRecord) -> bool:
    """Whether a batch's request was not run to its end, which its batch tells of, or mends."""
    is_cut_off = record.status is None and record.failure == CUT_OFF
    return record.is_of_batch and (is_cut_off or record.status in (429, 503))


def parts_of(record: RequestRecord, story: RequestStory) -> dict[str, float]:
    """Say where a request's time went, in seconds; sending goes on while tokens are made."""
    ended, tokens = record.started + story.total_s, story.tokens
    held_s = record.held_s
    body_s = 0.0
    if record.body_read_at is not None:
        body_s = record.body_read_at - record.started - held_s
    wait_model_s = 0.0
    if record.acquire_began_at is not None:
        wait_model_s = (record.acquired_at or ended) - record.acquire_began_at
    submitted_at = ended - record.send_wait_s if tokens is None else tokens.submitted_at
    # Whatever else came before the submission: the body parsed, the prompt rendered and encoded.
    parts = {
        "body_s": body_s,
        "wait_model_s": wait_model_s,
        "render_s": max(0.0, submitted_at - record.started - held_s - body_s - wait_model_s),
    }
    if held_s:
        parts = {"held_s": held_s, **parts}
    if tokens is not None:
        began_s = ended - submitted_at if tokens.first_token_s is None else tokens.first_token_s
        queue_s = began_s if tokens.queue_s is None else tokens.queue_s
        parts |= {
            "queue_s": queue_s,
            "prefill_s": max(0.0, began_s - queue_s),
            "decode_s": tokens.decode_s,
            "longest_gap_s": tokens.longest_gap_s,
        }
    return {**parts, "send_wait_s": record.send_wait_s}


def _outcome(record: RequestRecord, status: int, tokens: TokenStory | None) -> str:
    if record.failure is not None:
        return record.failure
    if status >= 400:
        return _CODES.get(status, f"http_{status}")
    if tokens is None:
        return ANSWERED
    return ",".join(dict.fromkeys(tokens.choice_ends))


def _tell_tokens(generation: ObservedGeneration, failure: str | None) -> TokenStory:
    usage, times = generation.usage, generation.times
    unfinished = FAILED if failure is not None and failure not in _ABORTS else ABORTED
    firsts = [each.first_at for each in times if each.first_at is not None]
    lasts = [each.last_at for each in times if each.last_at is not None]
    queued = [each.queue_s for each in times if each.queue_s is not None]
    is_begun = len(firsts) == len(times)
    submitted_at = times[0].submitted_at
    return TokenStory(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        generated_tokens=usage.completion_tokens,
        choice_ends=tuple(
            unfinished if reason is None else reason.value for reason in generation.finish_reasons
        ),
        submitted_at=submitted_at,
        queue_s=max(queued) if len(queued) == len(times) else None,
        first_token_s=max(firsts) - submitted_at if is_begun else None,
        decode_s=max(lasts) - max(firsts) if is_begun else 0.0,
        longest_gap_s=max(each.longest_gap_s for each in times),
        tokens_per_s=_rate(usage.completion_tokens, times, firsts, lasts),
    )


def _rate(
    num_tokens: int, times: Sequence[TokenTimes], firsts: list[float], lasts: list[float]
) -> float | None:
    """Return how fast tokens came after the first of each choice; None where none did."""
    num_after = num_tokens - len(firsts)
    if not firsts or num_after < 1 or len(firsts) < len(times):
        return None
    seconds = max(lasts) - min(firsts)
    return num_after / seconds if seconds > 0 else None
