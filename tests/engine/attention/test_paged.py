from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.kv_cache import KVCache
from engine.attention.paged import LoneDecode, PaddedDecodes, PagedStep
from engine.config import KVDtype
from engine.execution import model_input
from engine.execution.model_input import build_model_input, model_order
from engine.execution.slot_state import SlotState
from engine.sampling_params import SamplingParams
from engine.scheduling.batch import Decodes, ScheduledBatch, ScheduledChunk, SlotStart

BLOCK_SIZE, NUM_BLOCKS, HEADS, KV_HEADS, HEAD_DIM = 4, 400, 6, 2, 8
SCALE = 0.3


def make_cache(kept_as: KVDtype = KVDtype.FLOAT32) -> KVCache:
    return KVCache(
        num_layers=1,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        kept_as=kept_as,
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


@dataclass
class Held:
    """A sequence: all its tokens' keys and values, of which the last `num_new` come this step."""

    key_value: torch.Tensor
    num_new: int
    is_decoding: bool
    is_last_token: bool = False  # a chunk that is a decode, whose token the host knows

    @property
    def start(self) -> int:
        return len(self.key_value) - self.num_new


class Step:
    """A step over some sequences, whose earlier tokens are in the cache already."""

    def __init__(
        self,
        held: list[Held],
        *,
        kept_as: KVDtype = KVDtype.FLOAT32,
        is_scattered: bool = False,
        is_batch_invariant: bool = False,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.cache = make_cache(kept_as)
        slots = SlotState(max_num_seqs=len(held), max_model_len=400, cache=self.cache)
        order = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
        blocks = iter(order if is_scattered else range(NUM_BLOCKS))
        everywhere = torch.full((NUM_BLOCKS * BLOCK_SIZE, 2, KV_HEADS, HEAD_DIM), float("nan"))
        self.cache.write(0, torch.arange(NUM_BLOCKS * BLOCK_SIZE), everywhere)
        starts = []
        for index, each in enumerate(held):
            table = tuple(next(blocks) for _ in range(-(-len(each.key_value) // BLOCK_SIZE)))
            self.cache.clear(table)  # as blocks of a healthy sequence are: finite throughout
            params = SamplingParams(max_tokens=1)
            starts.append(SlotStart(index, index, params, 0, (0,), (), table))
        decoding = [i for i, each in enumerate(held) if each.is_decoding]
        chunking = [i for i, each in enumerate(held) if not each.is_decoding]
        self.batch = model_order(
            ScheduledBatch(
                Decodes(tuple(decoding), tuple(decoding), tuple(held[i].start for i in decoding)),
                tuple(
                    ScheduledChunk(
                        i,
                        i,
                        held[i].start,
                        (0,) * held[i].num_new,
                        0,
                        is_decode=held[i].is_last_token,
                    )
                    for i in chunking
                ),
                tuple(starts),
            )
        )
        slots.take_in(self.batch)
        for index, each in enumerate(held):
            positions = torch.arange(each.start).numpy()
            places = torch.from_numpy(slots.cache_slots(index, positions))
            self.cache.write(0, places, each.key_value[: each.start])
        self.attention = build_model_input(
            self.batch, slots, self.cache, is_batch_invariant=is_batch_invariant
        ).attention
        self.held = [held[i] for i in self.batch.sequence_ids]  # in the order of rows

    def attend(self, query: torch.Tensor, window: int | None) -> torch.Tensor:
        new = torch.cat([each.key_value[each.start :] for each in self.held])
        return self.attention.attend(0, query, new, scale=SCALE, window=window)

    def expected(self, query: torch.Tensor, window: int | None) -> torch.Tensor:
        """From the keys and values as the cache rounds them."""
        rows = iter(query)
        return torch.stack(
            [
                plain_attention(next(rows), self.cache.rounded(each.key_value[:stop]), window)
                for each in self.held
                for stop in range(each.start + 1, len(each.key_value) + 1)
            ]
        )


def random_held(lengths: list[tuple[int, int]], seed: int) -> list[Held]:
    """lengths: tokens before this step, tokens in it; 0 is a decode, -1 one of a known token."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Held(
            torch.randn(before + max(new, 1), 2, KV_HEADS, HEAD_DIM, generator=generator),
            max(new, 1),
            is_decoding=new == 0,
            is_last_token=new == -1,
        )
        for before, new in lengths
    ]


@settings(max_examples=120, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([0, 0, -1, -1, 1, 3, 20])),
        min_size=1,
        max_size=6,
    ),
    window=st.one_of(st.none(), st.integers(1, 30)),
    is_scattered=st.booleans(),
    is_batch_invariant=st.booleans(),
    kept_as=st.sampled_from(KVDtype),
    max_padding=st.sampled_from([0, 5, 128]),
    seed=st.integers(0, 99),
)
def test_every_token_attends_to_exactly_those_before_it(
    lengths: list[tuple[int, int]],
    window: int | None,
    is_scattered: bool,
    is_batch_invariant: bool,
    kept_as: KVDtype,
    max_padding: int,
    seed: int,
):
    """Decodes and chunks, in any order of blocks; NaN in other blocks must not be seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_input, "MAX_PADDING", max_padding)
        step = Step(
            random_held(lengths, seed),
            kept_as=kept_as,
            is_scattered=is_scattered,
            is_batch_invariant=is_batch_invariant,
            seed=seed,
        )
    query = torch.randn(step.batch.num_tokens, HEADS, HEAD_DIM)
    torch.testing.assert_close(step.attend(query, window), step.expected(query, window))


@pytest.mark.parametrize("window", [None, 7, 150])
def test_long_chunks_are_masked_in_pieces(window: int | None):
    step = Step(random_held([(50, 300), (0, 310)], 1))
    query = torch.randn(610, HEADS, HEAD_DIM)
    torch.testing.assert_close(step.attend(query, window), step.expected(query, window))


@pytest.mark.parametrize("kept_as", KVDtype)
@pytest.mark.parametrize("window", [None, 9])
def test_row_by_row_a_token_is_the_same_to_the_last_bit_in_any_step(
    kept_as: KVDtype, window: int | None
):
    """As a decode, in a chunk of any size, in any blocks and any company."""
    (whole,) = random_held([(0, 30)], 3)
    query = torch.randn(30, HEADS, HEAD_DIM)
    alone = Step([whole], kept_as=kept_as, is_batch_invariant=True).attend(query, window)
    mates = random_held([(13, 0), (5, 9)], 4)
    for start, stop, is_decoding in (
        (0, 17, False),
        (17, 30, False),
        (29, 30, True),
        (20, 21, True),
    ):
        part = Held(whole.key_value[:stop], stop - start, is_decoding)
        step = Step(
            [*mates, part], kept_as=kept_as, is_batch_invariant=True, is_scattered=True, seed=5
        )
        first = sum(
            each.num_new for each in step.held[: [id(each) for each in step.held].index(id(part))]
        )
        rows = torch.randn(step.batch.num_tokens, HEADS, HEAD_DIM)
        rows[first : first + stop - start] = query[start:stop]
        got = step.attend(rows, window)[first : first + stop - start]
        assert torch.equal(got, alone[start:stop])


def rows_of(step: Step) -> list[tuple[int, int]]:
    assert isinstance(step.attention, PagedStep)
    return [_rows(group) for group in step.attention.decodes]


def _rows(group: LoneDecode | PaddedDecodes) -> tuple[int, int]:
    if isinstance(group, LoneDecode):
        return group.row, group.row + 1
    return group.rows.start, group.rows.stop


def test_sequences_of_similar_length_share_a_group():
    step = Step(random_held([(n, 0) for n in (300, 1, 390, 98, 99)], 0))
    assert rows_of(step) == [(0, 2), (2, 5)]
    step = Step(random_held([(n, 0) for n in (390, 250, 98)], 0))
    assert rows_of(step) == [(0, 1), (1, 2), (2, 3)]


def test_a_group_never_gathers_more_than_the_bound(monkeypatch: pytest.MonkeyPatch):
    per_row = 25 * BLOCK_SIZE * make_cache().bytes_per_token
    monkeypatch.setattr(model_input, "MAX_GATHER_BYTES", 2 * per_row)
    assert rows_of(Step(random_held([(99, 0)] * 5, 0))) == [(0, 2), (2, 4), (4, 5)]


def test_a_lone_sequence_is_read_in_place_where_its_blocks_lie_side_by_side():
    for is_scattered in (False, True):
        step = Step(random_held([(40, 0)], 0), is_scattered=is_scattered)
        assert isinstance(step.attention, PagedStep)
        (group,) = step.attention.decodes
        assert isinstance(group, LoneDecode)
        assert (group.run.blocks is not None) == is_scattered
