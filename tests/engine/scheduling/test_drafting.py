from __future__ import annotations

from engine.scheduling.drafting import MIN_JUDGED, REST_TOKENS, NgramDrafter, num_accepted


def test_what_followed_the_last_tokens_before_is_drafted():
    drafter = NgramDrafter([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    assert drafter.propose(2) == (4, 5)
    assert drafter.propose(99) == (4, 5, 6, 9, 1, 2, 3)


def test_the_latest_of_several_occurrences_counts():
    drafter = NgramDrafter([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3])
    assert drafter.propose(1) == (5,)


def test_nothing_is_drafted_where_nothing_like_it_was_said():
    assert NgramDrafter([1, 2, 3, 4]).propose(4) == ()
    assert NgramDrafter([1]).propose(4) == ()
    assert NgramDrafter([1, 2, 3, 4, 1, 2, 3]).propose(0) == ()


def test_tokens_that_come_later_are_looked_at_too():
    drafter = NgramDrafter([1, 2, 3, 4])
    drafter.extend([8, 1, 2])
    assert drafter.propose(4) == ()
    drafter.extend([3])
    assert drafter.propose(2) == (4, 8)


def test_drafting_rests_for_a_while_after_too_many_wrong_guesses():
    drafter = NgramDrafter([1, 2, 3, 4, 1, 2, 3])
    drafter.judge(MIN_JUDGED, num_accepted=MIN_JUDGED // 10)
    assert not drafter.is_active
    assert drafter.propose(4) == ()
    drafter.extend([4, 1, 2, 3] * (REST_TOKENS // 4))
    assert drafter.is_active
    assert drafter.propose(1) == (4,)


def test_good_guesses_keep_it_drafting():
    drafter = NgramDrafter([1, 2, 3, 4, 1, 2, 3])
    for _ in range(10):
        drafter.judge(MIN_JUDGED, num_accepted=MIN_JUDGED // 2)
    assert drafter.is_active


def test_drafts_hold_up_to_the_first_that_differs():
    assert num_accepted((4, 5, 6), [4, 5, 9, 1]) == 2
    assert num_accepted((4, 5), [4, 5, 9]) == 2
    assert num_accepted((4,), [3, 1]) == 0
    assert num_accepted((), [3]) == 0
