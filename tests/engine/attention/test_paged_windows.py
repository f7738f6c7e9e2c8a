"""Attention by windows: a row's bits follow from its position, not from where a chunk began."""

from __future__ import annotations

import pytest
import torch

from engine.attention.paged import attend_in_windows, attend_onward

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


@pytest.fixture(name="tokens")
def _tokens():
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(208, HEADS, HEAD_DIM, generator=generator)
    return query, torch.randn(208, 2, KV_HEADS, HEAD_DIM, generator=generator)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("start", [0, 16, 64, 80, 192])
def test_what_is_seen_is_what_is_seen_otherwise(tokens, start, window):
    query, seen = tokens
    expected = attend_onward(query[start:], seen, start, 0.25, window)
    torch.testing.assert_close(
        attend_in_windows(query[start:], seen, start, 0.25, window), expected
    )


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (16, 208),
        (64, 128),
        (80, 96),
        (112, 176),
        (0, 48),
        (96, 103),
        (128, 129),
        (32, 97),
        (16, 47),
    ],
)
def test_a_row_comes_out_to_the_last_bit_wherever_its_chunk_begins_and_ends(
    tokens, start, stop, window
):
    query, seen = tokens
    whole = attend_in_windows(query, seen, 0, 0.25, window)
    part = attend_in_windows(query[start:stop], seen[:stop], start, 0.25, window)
    assert torch.equal(part, whole[start:stop])
