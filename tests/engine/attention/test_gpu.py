"""Steps of a GPU's path on the CPU: the kernels in Triton's interpreter, and their references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from engine.attention.gpu import GpuStep
from engine.attention.interface import FusedAttentionStep
from engine.attention.kv_cache import KVCache
from engine.attention.prompt import ChunkGroup
from engine.config import KVDtype
from engine.kernels.choice import step_kernels
from engine.kernels.launches import counted
from engine.kernels.step_kernels import DecodeRows, Order
from tests.engine.graph_guard import NothingForTheHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from engine.kernels.step_kernels import StepKernels

BLOCK_SIZE, NUM_BLOCKS, HEADS, KV_HEADS, HEAD_DIM = 4, 80, 6, 2, 16
MAX_BLOCKS, LAYER = 12, 1
SCALE = 0.3
KERNELS = [step_kernels("torch"), step_kernels("triton")]


def by_name(kernels: StepKernels) -> str:
    return kernels.name


@dataclass
class Step:
    """Sequences, all tokens of each; the last `num_new` come with the step."""

    step: GpuStep
    key_value: list[Tensor]  # [tokens, 2, kv_heads, head_dim] of each sequence, unrotated
    num_new: list[int]

    @property
    def new(self) -> Tensor:
        pairs = zip(self.key_value, self.num_new, strict=True)
        return torch.cat([tokens[-count:] for tokens, count in pairs])

    def expected(self, query: Tensor, window: int | None, *, turn: Callable[..., Tensor]) -> Tensor:
        """Written out row by row and head by head; turn: rotates heads at a position."""
        rows = iter(query)
        answer: list[Tensor] = []
        for tokens, num_new in zip(self.key_value, self.num_new, strict=True):
            keys = torch.stack([turn(token, at) for at, token in enumerate(tokens[:, 0])])
            keys, values = self.step.cache.rounded(torch.stack((keys, tokens[:, 1]), dim=1)).unbind(
                1
            )
            for stop in range(len(tokens) - num_new + 1, len(tokens) + 1):
                start = max(0, stop - window) if window else 0
                asked = turn(next(rows), stop - 1)
                for head in range(HEADS):
                    mate = head * KV_HEADS // HEADS
                    weights = torch.softmax(keys[start:stop, mate] @ asked[head] * SCALE, dim=0)
                    answer.append(weights @ values[start:stop, mate])
        return torch.stack(answer).view(len(query), HEADS * HEAD_DIM)


def as_it_is(heads: Tensor, position: int) -> Tensor:
    return heads


def make_rotation() -> Tensor:
    angles = torch.arange(MAX_BLOCKS * BLOCK_SIZE)[:, None] * 0.1 * torch.arange(1, 9)
    sine = torch.cat((-angles.sin(), angles.sin()), dim=-1)
    return torch.stack((angles.cos().repeat(1, 2), sine), dim=1)


ROTATION = make_rotation()


def rotated(heads: Tensor, position: int) -> Tensor:
    cosine, sine = ROTATION[position]
    return heads * cosine + heads.roll(HEAD_DIM // 2, dims=-1) * sine


def make_step(
    kernels: StepKernels,
    decoding: list[int],
    chunks: list[list[tuple[int, int]]],
    *,
    kept_as: KVDtype = KVDtype.FLOAT32,
    turn: Callable[..., Tensor] = as_it_is,
) -> Step:
    """decoding: tokens of each row's sequence; chunks: new tokens and all, in groups."""
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
    cache.write(LAYER, everywhere, nothing)
    lengths = [(1, total) for total in decoding] + [each for group in chunks for each in group]
    tables = torch.randperm(NUM_BLOCKS)[: len(lengths) * MAX_BLOCKS].view(-1, MAX_BLOCKS)
    made = Step(None, [], [])  # type: ignore[arg-type]  # what it sees is written first
    positions, places, seen = [], [], []
    for table, (num_new, total) in zip(tables, lengths, strict=True):
        tokens = torch.randn(total, 2, KV_HEADS, HEAD_DIM)
        at = torch.arange(total)
        slots = table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
        keys = torch.stack([turn(token, place) for place, token in enumerate(tokens[:, 0])])
        kept = torch.stack((keys, tokens[:, 1]), dim=1)[:-num_new]
        cache.write(LAYER, slots[:-num_new], kept)
        made.key_value.append(tokens)
        made.num_new.append(num_new)
        positions.append(at[-num_new:])
        places.append(slots[-num_new:])
        seen.append(slots)
    rows = DecodeRows(torch.arange(len(decoding)), torch.cat(positions), tables, BLOCK_SIZE)
    made.step = GpuStep(
        cache=cache,
        kernels=kernels,
        positions=torch.cat(positions),
        slot_mapping=torch.cat(places),
        decodes=DecodeRows(rows.slots, rows.positions[: len(decoding)], tables, BLOCK_SIZE)
        if decoding
        else None,
        chunks=make_groups(len(decoding), chunks, seen[len(decoding) :]),
    )
    return made


def make_groups(
    first: int, chunks: list[list[tuple[int, int]]], seen: list[Tensor]
) -> tuple[ChunkGroup, ...]:
    groups = []
    for group in chunks:
        num_rows, num_keys = zip(*group, strict=True)
        groups.append(
            ChunkGroup(
                rows=slice(first, first + sum(num_rows)),
                slots=torch.cat(seen[: len(group)]),
                row_ends=torch.tensor([0, *num_rows]).cumsum(0).int(),
                key_ends=torch.tensor([0, *num_keys]).cumsum(0).int(),
                num_rows=num_rows,
                num_keys=num_keys,
            )
        )
        first += sum(num_rows)
        del seen[: len(group)]
    return tuple(groups)


CASES = [
    ([30, 1, 9], []),
    ([], [[(5, 5), (2, 13)]]),
    ([17, 3], [[(4, 4)], [(1, 20), (6, 6)]]),
]


@pytest.mark.parametrize("kernels", KERNELS, ids=by_name)
@pytest.mark.parametrize(("decoding", "chunks"), CASES)
@pytest.mark.parametrize("window", [None, 5])
def test_transformers_layers_attend_with_every_row_to_its_own_sequence(
    kernels: StepKernels,
    decoding: list[int],
    chunks: list[list[tuple[int, int]]],
    window: int | None,
):
    made = make_step(kernels, decoding, chunks)
    # As Transformers lays queries out: heads first.
    query = torch.randn(HEADS, len(made.new), HEAD_DIM).transpose(0, 1)
    attended = made.step.attend(LAYER, query, made.new, scale=SCALE, window=window)
    assert attended.shape == query.shape
    expected = made.expected(query, window, turn=as_it_is)
    torch.testing.assert_close(attended.flatten(1), expected)


@pytest.mark.parametrize(("decoding", "chunks"), CASES)
@pytest.mark.parametrize("kept_as", [KVDtype.FLOAT32, KVDtype.FP8])
@pytest.mark.parametrize("is_permuted", [False, True])
def test_own_layers_hand_over_what_their_product_gave(
    decoding: list[int],
    chunks: list[list[tuple[int, int]]],
    kept_as: KVDtype,
    is_permuted: bool,
):
    assert_own_layers_attend(step_kernels("torch"), decoding, chunks, kept_as, is_permuted)


@pytest.mark.parametrize("kept_as", [KVDtype.FLOAT32, KVDtype.FP8])
def test_own_layers_attend_alike_by_triton(kept_as: KVDtype):
    assert_own_layers_attend(step_kernels("triton"), *CASES[-1], kept_as, is_permuted=True)


def assert_own_layers_attend(
    kernels: StepKernels,
    decoding: list[int],
    chunks: list[list[tuple[int, int]]],
    kept_as: KVDtype,
    is_permuted: bool,
) -> None:
    made = make_step(kernels, decoding, chunks, kept_as=kept_as, turn=rotated)
    query = torch.randn(len(made.new), HEADS, HEAD_DIM)
    qkv = torch.cat((query.flatten(1), made.new.flatten(1)), dim=1)
    columns = torch.randperm(HEADS * HEAD_DIM)
    attended = attend_fused(made.step, qkv, Order.of(columns) if is_permuted else None)
    expected = made.expected(query, None, turn=rotated)
    expected = expected[:, columns] if is_permuted else expected
    # Of fp8 a code next to where it rounds up or down may go either way.
    tolerance = 0.02 if kept_as is KVDtype.FP8 else 2e-5
    torch.testing.assert_close(attended, expected, rtol=0, atol=tolerance)


def attend_fused(step: GpuStep, qkv: Tensor, order: Order | None) -> Tensor:
    return step.attend_fused(
        LAYER,
        qkv,
        ROTATION,
        num_heads=HEADS,
        scale=SCALE,
        window=None,
        head_norm=None,
        order=order,
    )


def test_a_step_is_few_launches_and_no_gather_of_what_decodes():
    made = make_step(step_kernels("triton"), [17, 3], [[(4, 4)], [(1, 20)]])
    qkv = torch.randn(len(made.new), (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    with counted() as launches:
        attend_fused(made.step, qkv, None)
    merges = launches.pop("paged_decode_merge", 0)
    assert merges <= 1
    assert launches == {"rotate_and_store": 1, "paged_decode": 1, "prompt_attention_sdpa": 2}


def test_the_step_is_what_both_kinds_of_layers_ask_for():
    assert isinstance(make_step(step_kernels("torch"), [3], []).step, FusedAttentionStep)


@pytest.mark.parametrize("kernels", KERNELS, ids=by_name)
def test_a_step_of_decodes_is_made_of_the_devices_tensors_alone(kernels: StepKernels):
    made = make_step(kernels, [30, 1, 9], [], turn=rotated)
    query = torch.randn(3, HEADS, HEAD_DIM)
    qkv = torch.cat((query.flatten(1), made.new.flatten(1)), dim=1)
    rows = made.step.decodes
    assert rows is not None
    step = GpuStep.of_decodes(made.step.cache, kernels, rows.slots, rows.positions, rows.tables)
    assert torch.equal(step.slot_mapping, made.step.slot_mapping)
    if kernels.name == "torch":  # the interpreter itself copies tensors
        with NothingForTheHost():
            GpuStep.of_decodes(made.step.cache, kernels, rows.slots, rows.positions, rows.tables)
            attended = attend_fused(step, qkv, None)
    else:
        attended = attend_fused(step, qkv, None)
    expected = made.expected(query, None, turn=rotated)
    torch.testing.assert_close(attended, expected, rtol=0, atol=2e-5)
