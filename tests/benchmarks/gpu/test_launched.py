"""Launches that are missing, or too many, are named."""

from __future__ import annotations

from collections import Counter

from benchmarks.gpu.launched import differences, expected_launches


def test_what_should_have_been_launched_is_no_difference_however_attention_is_split():
    expected = expected_launches(2)
    assert differences(expected, expected) == []
    assert differences(expected + Counter(paged_decode_merge=2), expected) == []


def test_a_way_around_the_kernels_is_named():
    expected = expected_launches(2)
    found = expected - Counter(silu_mul=1) + Counter(gather_input=2)
    assert differences(found, expected) == [
        "gather_input 2 times, expected 0",
        "silu_mul 1 times, expected 2",
    ]
