"""Requests of different callers that all come to repeat one token."""

from __future__ import annotations

from engine.outputs import FinishReason, TokenOutput
from engine.process.repetition_watch import MIN_REQUESTS, RUN_LENGTH, WINDOW_S, RepetitionWatch
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams

PARAMS = SamplingParams(max_tokens=100)


class Story:
    """Requests and their tokens; counts how often the watch speaks up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.found: list[int] = []
        self.watch = RepetitionWatch(lambda: self.now)
        self._next = 0

    def request(
        self, caller: str, token_ids: list[int], *, group: int | None = None, ends: bool = True
    ) -> None:
        number, self._next = self._next, self._next + 1
        self.watch.begin(
            SequenceRequest(
                sequence_id=number,
                prompt_token_ids=(1,),
                params=PARAMS,
                caller=caller,
                group=group,
            )
        )
        for index, token_id in enumerate(token_ids):
            is_last = ends and index == len(token_ids) - 1
            reason = FinishReason.LENGTH if is_last else None
            found = self.watch.take_in(TokenOutput(number, token_id, None, reason))
            if found is not None:
                self.found.append(found)


REPEATED = [5, 6, *[7] * RUN_LENGTH]


def test_one_token_in_many_requests_of_several_callers_is_noticed_once():
    story = Story()
    for number in range(MIN_REQUESTS):
        story.request(f"user {number % 3}", REPEATED, ends=number % 2 == 0)
    assert story.found == [7]
    story.request("user 9", REPEATED)
    assert story.found == [7]  # it takes as many again


def test_callers_that_do_not_say_who_they_are_count_by_their_requests():
    story = Story()
    for _ in range(MIN_REQUESTS):
        story.request("", REPEATED)
    assert story.found == [7]


def test_the_choices_of_one_request_are_one():
    story = Story()
    for _ in range(3 * MIN_REQUESTS):
        story.request("", REPEATED, group=4)
    assert story.found == []


def test_one_caller_with_many_requests_is_not_enough():
    story = Story()
    for number in range(5 * MIN_REQUESTS):
        story.request(f"user {number % 2}", REPEATED)
    assert story.found == []


def test_requests_that_repeat_different_tokens_are_models_as_they_are():
    story = Story()
    for number in range(5 * MIN_REQUESTS):
        story.request(f"user {number}", [number] * 2 * RUN_LENGTH)
    assert story.found == []


def test_what_is_long_ago_does_not_count():
    story = Story()
    for number in range(5 * MIN_REQUESTS):
        story.request(f"user {number}", REPEATED)
        story.now += WINDOW_S / 4
    assert story.found == []


def test_a_short_run_or_a_broken_one_does_not_count():
    story = Story()
    for number in range(5 * MIN_REQUESTS):
        story.request(f"user {number}", [*[7] * (RUN_LENGTH - 1), 8, *[7] * (RUN_LENGTH - 1)])
    assert story.found == []


def test_sequences_that_ended_or_were_given_up_are_forgotten():
    story = Story()
    story.request("user", REPEATED)
    story.request("user", REPEATED, ends=False)
    story.watch.drop(1)
    story.watch.drop(99)
    assert story.watch._runs == {}
