"""Chunks' attention: how it is prepared for flash attention, and that by PyTorch's own."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.attention import prompt
from engine.attention.kv_cache import KVCache
from engine.attention.prompt import ChunkGroup, attend_to_chunks, group_chunks, prompt_bytes
from engine.config import KVDtype
from engine.kernels.launches import counted

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_SIZE, NUM_BLOCKS, HEADS, KV_HEADS, HEAD_DIM = 4, 40, 6, 2, 8
SCALE = 0.3
# Rows and keys: a prompt's first tokens, one that goes on, a last token alone.
CHUNKS = [(5, 5), (3, 22), (1, 9), (7, 7)]


def make_cache(kept_as: KVDtype = KVDtype.FLOAT32) -> KVCache:
    cache = KVCache(
        num_layers=2,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        kept_as=kept_as,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    everywhere = torch.arange(NUM_BLOCKS * BLOCK_SIZE)
    nothing = torch.full((len(everywhere), 2, KV_HEADS, HEAD_DIM), float("nan"))
    cache.write(1, everywhere, nothing)
    return cache


def make_group(chunks: list[tuple[int, int]], slots: Tensor) -> ChunkGroup:
    num_rows, num_keys = zip(*chunks, strict=True)
    return ChunkGroup(
        rows=slice(0, sum(num_rows)),
        slots=slots,
        row_ends=ends(num_rows),
        key_ends=ends(num_keys),
        num_rows=num_rows,
        num_keys=num_keys,
    )


def ends(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def naive(query: Tensor, seen: Tensor, group: ChunkGroup, window: int | None) -> Tensor:
    """Row by row and head by head; the last row of a chunk sees its last key."""
    answer: list[Tensor] = []
    rows = iter(query)
    per_chunk = seen.split(list(group.num_keys))
    for (num_rows, num_keys), theirs in zip(
        zip(group.num_rows, group.num_keys, strict=True), per_chunk, strict=True
    ):
        for index in range(num_rows):
            stop = num_keys - num_rows + index + 1
            start = 0 if window is None else max(0, stop - window)
            asked = next(rows)
            for head in range(HEADS):
                keys, values = theirs[start:stop, :, head * KV_HEADS // HEADS].unbind(1)
                answer.append(torch.softmax(keys @ asked[head] * SCALE, dim=0) @ values)
    return torch.stack(answer).view(-1, HEADS, HEAD_DIM)


def flash_in_words(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int | None,
    window_size_right: int | None,
) -> tuple[Tensor, ...]:
    """What flash attention computes, told by where sequences end; refuses what it refuses."""
    assert dropout_p == 0.0
    assert is_causal
    assert not return_debug_mask
    assert window_size_right in (None, 0)
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert cum_seq_q.is_contiguous()
    assert cum_seq_k.is_contiguous()
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert int(cum_seq_q[-1]) == len(query)
    assert int(cum_seq_k[-1]) == len(key) == len(value)
    assert int(cum_seq_q.diff().max()) == max_q
    assert int(cum_seq_k.diff().max()) == max_k
    answer = torch.full_like(query, float("nan"))
    per_key = query.shape[1] // key.shape[1]
    for (row, row_stop), (first, stop) in zip(
        pairwise(cum_seq_q.tolist()), pairwise(cum_seq_k.tolist()), strict=True
    ):
        shift = (stop - first) - (row_stop - row)
        for at in range(row, row_stop):
            last = first + shift + at - row
            low = first if window_size_left is None else max(first, last - window_size_left)
            for head in range(query.shape[1]):
                keys, values = (each[low : last + 1, head // per_key] for each in (key, value))
                weights = torch.softmax(keys @ query[at, head] * scale, dim=0)
                answer[at, head] = weights @ values
    return (answer, torch.empty(0), torch.empty(0), torch.empty(0), torch.empty(0))


def store(cache: KVCache, num_keys: int) -> tuple[Tensor, Tensor]:
    """Fill scattered slots; return where, and what is read there."""
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:num_keys]
    key_value = torch.randn(num_keys, 2, KV_HEADS, HEAD_DIM)
    cache.write(1, slots, key_value)
    return slots, cache.rounded(key_value)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("kept_as", list(KVDtype))
def test_each_row_sees_what_is_cached_up_to_itself(window: int | None, kept_as: KVDtype):
    cache = make_cache(kept_as)
    slots, seen = store(cache, sum(keys for _, keys in CHUNKS))
    group = make_group(CHUNKS, slots)
    query = torch.randn(16, HEADS, HEAD_DIM)
    with counted() as launches:
        attended = attend_to_chunks(cache, 1, query, group, scale=SCALE, window=window)
    torch.testing.assert_close(attended, naive(query, seen, group, window))
    assert launches == {"prompt_attention_sdpa": 1}


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("chunks", [CHUNKS, [(1, 1)], [(2, 9)]])
def test_flash_attention_is_told_the_same(
    window: int | None, chunks: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompt, "takes_flash", lambda *facts: True)
    monkeypatch.setattr(prompt, "flash_forward", flash_in_words)
    cache = make_cache()
    slots, seen = store(cache, sum(keys for _, keys in chunks))
    group = make_group(chunks, slots)
    query = torch.randn(sum(rows for rows, _ in chunks), HEADS, HEAD_DIM)
    with counted() as launches:
        attended = attend_to_chunks(cache, 1, query, group, scale=SCALE, window=window)
    torch.testing.assert_close(attended, naive(query, seen, group, window))
    assert launches == {"prompt_attention_flash": 1}


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, (9, 0))


def pretend_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    prompt.takes_flash.cache_clear()


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "takes"),
    [
        (CUDA, torch.float16, 64, True),
        (CUDA, torch.bfloat16, 256, True),
        (CUDA, torch.bfloat16, 96, True),
        (CPU, torch.float16, 64, False),
        (CUDA, torch.float32, 64, False),
        (CUDA, torch.float16, 20, False),
        (CUDA, torch.float16, 264, False),
    ],
)
def test_facts_say_whether_flash_attention_runs(
    device: torch.device, dtype: torch.dtype, head_dim: int, takes: bool
):
    assert prompt.takes_flash(device, dtype, head_dim) is takes
    prompt.takes_flash.cache_clear()


def test_older_cards_and_builds_without_it_have_no_flash_attention(
    monkeypatch: pytest.MonkeyPatch,
):
    pretend_card(monkeypatch, (7, 5))
    assert not prompt.takes_flash(CUDA, torch.float16, 64)
    pretend_card(monkeypatch, (8, 0))
    assert prompt.takes_flash(CUDA, torch.float16, 64)
    pretend_card(monkeypatch, (8, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not prompt.takes_flash(CUDA, torch.float16, 64)
    prompt.takes_flash.cache_clear()


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize("change", ["more by name", "renamed", "one less", "new by place"])
def test_an_operation_that_takes_other_arguments_is_left_alone(
    change: str, monkeypatch: pytest.MonkeyPatch
):
    arguments: list[Any] = [
        SimpleNamespace(name=argument.name, kwarg_only=argument.kwarg_only)
        for argument in prompt.flash_forward._schema.arguments
    ]
    if change == "more by name":
        arguments.append(SimpleNamespace(name="another", kwarg_only=True))
    elif change == "renamed":
        arguments[3].name = "cu_seqlens_q"
    elif change == "one less":
        arguments = [argument for argument in arguments if argument.name != "window_size_left"]
    else:
        arguments.insert(10, SimpleNamespace(name="another", kwarg_only=False))
    schema = SimpleNamespace(_schema=SimpleNamespace(arguments=arguments))
    monkeypatch.setattr(prompt, "flash_forward", schema)
    takes = prompt.takes_flash(CUDA, torch.float16, 64)
    prompt.takes_flash.cache_clear()
    assert takes is (change == "more by name")


def test_what_is_given_fits_the_operation_that_is_installed():
    """On the meta device, which has shapes only."""
    group = make_group([(3, 5), (2, 2)], torch.arange(7))
    query = torch.empty(5, HEADS, HEAD_DIM, dtype=torch.float16, device="meta")
    seen = torch.empty(7, 2, KV_HEADS, HEAD_DIM, dtype=torch.float16, device="meta")
    attended = prompt.attend_by_flash(query, seen, group, scale=SCALE, window=3)
    assert attended.shape == query.shape
    assert attended.dtype == torch.float16


def test_chunks_are_gathered_together_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompt, "MAX_PROMPT_BYTES", 100)
    assert group_chunks([], 2) == []
    assert group_chunks([50], 2) == [slice(0, 1)]
    assert group_chunks([20, 30, 1], 2) == [slice(0, 2), slice(2, 3)]
    assert group_chunks([90, 10, 70, 10, 10, 40], 2) == [
        slice(0, 1),
        slice(1, 2),
        slice(2, 3),
        slice(3, 5),
        slice(5, 6),
    ]


def test_memory_of_a_group_is_what_its_bound_or_its_one_chunk_takes(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(prompt, "MAX_PROMPT_BYTES", 1000)
    assert prompt_bytes(2, max_model_len=100, max_num_seqs=3) == 600
    assert prompt_bytes(2, max_model_len=100, max_num_seqs=30) == 1000
    assert prompt_bytes(2, max_model_len=900, max_num_seqs=30) == 1800


def test_flash_attention_that_is_left_out_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompt, "takes_flash", lambda *facts: True)
    cache = make_cache()
    slots, seen = store(cache, sum(keys for _, keys in CHUNKS))
    group = make_group(CHUNKS, slots)
    query = torch.randn(16, HEADS, HEAD_DIM)
    with counted() as launches:
        attended = attend_to_chunks(
            cache, 1, query, group, scale=SCALE, window=None, has_flash=False
        )
    torch.testing.assert_close(attended, naive(query, seen, group, None))
    assert launches == {"prompt_attention_sdpa": 1}
