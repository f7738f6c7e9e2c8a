"""Limits, against figures that were worked out by hand for an H200."""

import pytest

from benchmarks.gpu.limit import CODELLAMA_7B, Ceilings, decode_limit, prefill_limit

H200 = Ceilings(bytes_per_s=4.3e12, flop_per_s=790e12)


def test_7b_reads_its_codes_scales_and_head_in_every_step():
    assert CODELLAMA_7B.bytes_read / 1e9 == pytest.approx(3.60, abs=0.005)


def test_7b_keeps_half_a_megabyte_a_token():
    assert CODELLAMA_7B.kv_bytes == 512 * 1024


@pytest.mark.parametrize(
    ("batch", "context", "tokens_per_s"),
    [
        (1, 512, 1111),
        (8, 512, 5983),
        (32, 512, 11286),
        (128, 512, 12633),
        (1, 4096, 747),
        (8, 4096, 1655),
        (32, 4096, 1902),
    ],
)
def test_the_limit_of_decoding(batch, context, tokens_per_s):
    assert decode_limit(CODELLAMA_7B, batch, context, H200) == pytest.approx(tokens_per_s, abs=1)


def test_a_long_prompt_is_bound_by_its_products():
    by_products = H200.flop_per_s / (2 * CODELLAMA_7B.num_packed)
    assert prefill_limit(CODELLAMA_7B, 2048, H200) == pytest.approx(by_products)


def test_a_short_prompt_is_bound_by_the_weights_bytes():
    by_bytes = H200.bytes_per_s / CODELLAMA_7B.bytes_read
    assert prefill_limit(CODELLAMA_7B, 1, H200) == pytest.approx(by_bytes)
