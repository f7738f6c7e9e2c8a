from __future__ import annotations

from engine.sampling_params import SamplingParams
from engine.scheduling.admission import Admission
from engine.scheduling.queues import Queues
from engine.scheduling.sequence import Sequence


def queued(queues: Queues, sequence_id: int, *, is_background: bool, caller: str = "a") -> Sequence:
    sequence = Sequence(
        sequence_id=sequence_id,
        prompt_token_ids=(1, 2),
        params=SamplingParams(max_tokens=4),
        seed=0,
        max_output_tokens=4,
        caller=queues.caller(caller, 1.0, is_background=is_background),
        is_background=is_background,
        arrival=sequence_id,
    )
    queues.enter(sequence)
    return sequence


def test_the_background_comes_after_all_others_however_long_it_has_waited():
    queues = Queues(Admission())
    first = queued(queues, 1, is_background=True)
    second = queued(queues, 2, is_background=False)
    assert (len(queues), set(queues)) == (2, {first, second})
    assert queues.peek() is second
    queues.take(second)
    assert queues.peek() is first


def test_a_callers_two_classes_have_clocks_of_their_own():
    queues = Queues(Admission())
    own, batch = (queued(queues, n, is_background=bool(n)) for n in (0, 1))
    batch.caller.charge(1000)
    assert own.caller.clock == 0
    assert (own.caller.name, batch.caller.name) == ("a", "a")


def test_only_others_are_counted_against_what_may_wait():
    admission = Admission(max_queued_seqs=1)
    queues = Queues(admission)
    batch = queued(queues, 1, is_background=True)
    queues.admission_of(batch).enter(2)
    assert admission.num_seqs == 0
    assert queues.admission_of(queued(queues, 2, is_background=False)) is admission
