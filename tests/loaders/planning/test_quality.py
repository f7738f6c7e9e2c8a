"""The expected order of quality."""

from __future__ import annotations

import math

import pytest

from loaders.planning.quality import expected_quality
from tests.planned import awq_70b, fp16_34b, gguf_13b, gptq_7b


def test_the_branches_of_the_7b_card_stand_in_its_own_order():
    """Its words: 32g act order is the best of 4 bits, 64g slightly lower, main the lowest."""
    ranked = sorted(gptq_7b(), key=lambda v: -expected_quality(v).rank)
    assert [v.revision for v in ranked] == [
        "gptq-8bit-128g-actorder_True",
        "gptq-8bit--1g-actorder_True",
        "gptq-4bit-32g-actorder_True",
        "gptq-4bit-64g-actorder_True",
        "gptq-4bit-128g-actorder_True",
        "main",
    ]


def test_gguf_types_stand_in_the_cards_order():
    ranked = sorted(gguf_13b(), key=lambda v: -expected_quality(v).rank)
    assert [v.gguf_type for v in ranked] == [
        "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S",
        "Q2_K",
    ]  # fmt: skip


def test_what_is_not_quantised_is_best_of_all():
    dense = expected_quality(fp16_34b()[0])
    assert dense.words == "not quantised"
    others = [*gptq_7b(), *awq_70b(), *gguf_13b()]
    assert all(dense.rank > expected_quality(other).rank for other in others)


def test_words_say_what_the_rank_follows_from():
    assert expected_quality(gptq_7b()[1]).words == "4-bit, groups of 32, act order"
    assert expected_quality(gptq_7b()[4]).words == "8-bit, no groups, act order"


@pytest.mark.parametrize("recorded", [None, "10.2", True, math.nan, math.inf, -3, 0.5, [10.2], {}])
def test_a_record_that_is_no_perplexity_counts_as_none(recorded):
    assert expected_quality(gptq_7b()[0], recorded).perplexity is None


def test_a_recorded_perplexity_is_carried():
    assert expected_quality(gptq_7b()[0], 11).perplexity == 11.0
