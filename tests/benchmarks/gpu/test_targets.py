"""Targets are those of an H200; other GPUs aim at the same share of their own limit."""

from __future__ import annotations

import pytest

from benchmarks.gpu.limit import CODELLAMA_7B, CODELLAMA_34B, Ceilings, decode_limit
from benchmarks.gpu.targets import H200, TARGETS, target_of

DECODE = {"what": "decode", "batch": 1, "context": 512, "tokens_per_s": 500.0}


def test_on_an_h200_the_target_is_the_one_that_is_written_down():
    assert target_of(DECODE, CODELLAMA_7B, H200) == pytest.approx(600)
    prefill = {"what": "prefill", "tokens": 2048, "tokens_per_s": 1.0}
    assert target_of(prefill, CODELLAMA_34B, H200) == pytest.approx(8000)


def test_a_gpu_of_less_bandwidth_aims_at_the_same_share_of_its_limit():
    h100 = Ceilings(bytes_per_s=3.0e12, flop_per_s=790e12)
    share = 600 / decode_limit(CODELLAMA_7B, 1, 512, H200)
    aimed = target_of(DECODE, CODELLAMA_7B, h100)
    assert aimed == pytest.approx(share * decode_limit(CODELLAMA_7B, 1, 512, h100))
    assert aimed < 450


def test_what_nobody_aims_at_has_no_target():
    assert target_of({**DECODE, "batch": 3}, CODELLAMA_7B, H200) is None
    assert target_of({**DECODE, "context": 4096}, CODELLAMA_7B, H200) is None


def test_no_target_is_beyond_the_limit():
    for target in TARGETS:
        if target.what == "decode":
            limit = decode_limit(target.shape, target.batch, target.context, H200)
            assert target.tokens_per_s < limit
