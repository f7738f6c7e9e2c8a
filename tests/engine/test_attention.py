from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import attention
from engine.attention import CachedSequence, LoneDecode, PaddedDecodes, PagedStep, group_decodes
from engine.kv_cache import KVCache

BLOCK_SIZE, NUM_BLOCKS, HEADS, KV_HEADS, HEAD_DIM = 4, 200, 6, 2, 8
SCALE = 0.3


def make_cache() -> KVCache:
    return KVCache(
        num_layers=1,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def plain_attention(
    query: torch.Tensor, key_value: torch.Tensor, window: int | None
) -> torch.Tensor:
    """The last token's attention, written out; key_value: [num_tokens, 2, kv_heads, head_dim]."""
    seen = key_value if window is None else key_value[-window:]
    answer = []
    for head in range(HEADS):
        keys, values = seen[:, :, head * KV_HEADS // HEADS].unbind(1)
        weights = torch.softmax(keys @ query[head] * SCALE, dim=0)
        answer.append(weights @ values)
    return torch.stack(answer)


def store(cache: KVCache, table: list[int], key_value: torch.Tensor) -> None:
    for position, token in enumerate(key_value):
        block, offset = divmod(position, BLOCK_SIZE)
        cache.layers[0][table[block] * BLOCK_SIZE + offset] = token


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    window=st.one_of(st.none(), st.integers(1, 30)),
    is_scattered=st.booleans(),
    is_batch_invariant=st.booleans(),
    max_padding=st.sampled_from([0, 5, 128]),
    seed=st.integers(0, 99),
)
def test_decoding_attends_to_exactly_the_tokens_before(
    lengths: list[int],
    window: int | None,
    is_scattered: bool,
    is_batch_invariant: bool,
    max_padding: int,
    seed: int,
):
    """Whatever lies in other blocks, NaN included, must not be seen."""
    generator = torch.Generator().manual_seed(seed)
    cache = make_cache()
    cache.layers[0][: NUM_BLOCKS * BLOCK_SIZE] = float("nan")
    lengths.sort(reverse=True)
    order = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    blocks = iter(order if is_scattered else range(NUM_BLOCKS))
    tables = [[next(blocks) for _ in range(-(-n // BLOCK_SIZE))] for n in lengths]
    tokens = [torch.randn(n, 2, KV_HEADS, HEAD_DIM, generator=generator) for n in lengths]
    for table, key_value in zip(tables, tokens, strict=True):
        cache.clear(table)  # as blocks of a healthy sequence are: finite throughout
        store(cache, table, key_value[:-1])
    query = torch.randn(len(lengths), HEADS, HEAD_DIM, generator=generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MAX_PADDING", max_padding)
        groups = group_decodes(
            [CachedSequence(n, tuple(t)) for n, t in zip(lengths, tables, strict=True)],
            cache,
            is_batch_invariant=is_batch_invariant,
        )
    last = [
        table[-1] * BLOCK_SIZE + (n - 1) % BLOCK_SIZE
        for n, table in zip(lengths, tables, strict=True)
    ]
    step = PagedStep(cache, torch.tensor(last), groups, ())
    new = torch.stack([key_value[-1] for key_value in tokens])
    attended = step.attend(0, query, new, scale=SCALE, window=window)

    wanted = [plain_attention(q, kv, window) for q, kv in zip(query, tokens, strict=True)]
    torch.testing.assert_close(attended, torch.stack(wanted))


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_a_prompt_attends_to_itself_backwards(window: int | None):
    cache = make_cache()
    query = torch.randn(20, HEADS, HEAD_DIM)
    key_value = torch.randn(20, 2, KV_HEADS, HEAD_DIM)
    step = PagedStep(cache, torch.arange(20), (), (slice(0, 8), slice(8, 20)))
    attended = step.attend(0, query, key_value, scale=SCALE, window=window)
    for start, stop in ((0, 8), (8, 20)):
        for row in range(start, stop):
            wanted = plain_attention(query[row], key_value[start : row + 1], window)
            torch.testing.assert_close(attended[row], wanted)
    assert torch.equal(cache.layers[0][:20], key_value)


def test_sequences_of_similar_length_share_a_group():
    cache = make_cache()
    lengths = [500, 400, 300, 100, 99, 2]
    sequences = [CachedSequence(n, (0,) * -(-n // BLOCK_SIZE)) for n in lengths]
    groups = group_decodes(sequences, cache, is_batch_invariant=False)
    assert [_rows(group) for group in groups] == [(0, 2), (2, 3), (3, 6)]


def test_a_group_never_gathers_more_than_the_bound(monkeypatch: pytest.MonkeyPatch):
    cache = make_cache()
    per_row = 25 * BLOCK_SIZE * cache.bytes_per_token
    monkeypatch.setattr(attention, "MAX_GATHER_BYTES", 2 * per_row)
    sequences = [CachedSequence(100, (0,) * 25)] * 5
    groups = group_decodes(sequences, cache, is_batch_invariant=False)
    assert [_rows(group) for group in groups] == [(0, 2), (2, 4), (4, 5)]


def test_in_the_batch_invariant_mode_every_sequence_is_its_own_group():
    cache = make_cache()
    sequences = [CachedSequence(8, (0, 1)), CachedSequence(8, (5, 3))]
    one, other = group_decodes(sequences, cache, is_batch_invariant=True)
    assert isinstance(one, LoneDecode)
    assert isinstance(other, LoneDecode)
    assert one.blocks is None  # side by side: read in place
    assert other.blocks is not None


def _rows(group: LoneDecode | PaddedDecodes) -> tuple[int, int]:
    if isinstance(group, LoneDecode):
        return group.row, group.row + 1
    return group.rows.start, group.rows.stop
