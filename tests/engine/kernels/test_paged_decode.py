"""The kernels against the reference, and that against plain words; interpreted without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from engine.kernels import paged_decode
from engine.kernels.launches import counted
from engine.kernels.paged_decode import (
    compile_cases,
    decode_attention,
    num_splits,
    reference,
    split_buffer_bytes,
)
from engine.kernels.step_kernels import DecodeRows, KVLayer, Order
from tests.engine.kernels.poisoned import DEVICE

BLOCK_SIZE = 16
FP8 = torch.float8_e4m3fn


@dataclass
class Rows:
    """Rows over scattered blocks; whatever they do not see is NaN."""

    query: torch.Tensor
    layer: KVLayer
    rows: DecodeRows
    seen: list[torch.Tensor]  # each row's keys and values, float32 [tokens, 2, kv_heads, head_dim]
    scale: float
    window: int | None = None
    order: Order | None = None

    def arguments(self) -> dict[str, object]:
        return {"scale": self.scale, "window": self.window, "order": self.order}

    def reference(self) -> torch.Tensor:
        return reference(self.query, self.layer, self.rows, **self.arguments())

    def launch(self) -> torch.Tensor:
        return decode_attention(self.query, self.layer, self.rows, **self.arguments())

    def plain(self) -> torch.Tensor:
        """Row by row and head by head."""
        answer = []
        for query, seen in zip(self.query.float(), self.seen, strict=True):
            group = query.shape[0] // seen.shape[2]
            for head, asked in enumerate(query):
                keys, values = seen[:, :, head // group].unbind(1)
                answer.append(torch.softmax(keys @ asked * self.scale, dim=0) @ values)
        result = torch.stack(answer).view(len(self.seen), -1)
        return result if self.order is None else result[:, self.order.gather.long()]


def make_rows(
    heads: tuple[int, int],
    head_dim: int,
    lengths: list[int],
    *,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    kept_as: torch.dtype | None = None,
    is_permuted: bool = False,
) -> Rows:
    generator = torch.Generator().manual_seed(len(lengths) + head_dim)
    num_heads, kv_heads = heads
    max_blocks = -(-max(lengths) // BLOCK_SIZE) + 1
    num_blocks = len(lengths) * max_blocks + 1
    tables = torch.full((len(lengths) + 2, max_blocks), num_blocks - 1)
    slots = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
    order = torch.randperm(num_blocks - 1, generator=generator).view(len(lengths), -1)
    tables[slots] = order
    everything = torch.randn(num_blocks * BLOCK_SIZE, 2, kv_heads, head_dim, generator=generator)
    kept, scales = keep(everything, kept_as or dtype)
    wide = kept.float() if scales is None else kept.float() * scales.float()
    is_seen = torch.zeros(len(kept), dtype=torch.bool)
    seen = []
    for row, length in enumerate(lengths):
        positions = torch.arange(max(0, length - window) if window else 0, length)
        places = order[row][positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        seen.append(wide[places])
        is_seen[places] = True
    poison(kept, ~is_seen)
    if scales is not None:
        poison(scales, ~is_seen)
    columns = torch.randperm(num_heads * head_dim, generator=generator)
    positions = torch.tensor(lengths, device=DEVICE) - 1
    query = torch.randn(len(lengths), num_heads, head_dim, generator=generator)
    return Rows(
        query=query.to(DEVICE, dtype),
        layer=KVLayer(kept.to(DEVICE), None if scales is None else scales.to(DEVICE)),
        rows=DecodeRows(slots.to(DEVICE), positions, tables.to(DEVICE), BLOCK_SIZE),
        seen=[one.to(DEVICE) for one in seen],
        scale=head_dim**-0.5,
        window=window,
        order=Order.of(columns.to(DEVICE)) if is_permuted else None,
    )


def assert_alike(attended: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(attended, expected, rtol=tolerance, atol=min(tolerance, 2e-4))


def keep(key_value: torch.Tensor, kept_as: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    if kept_as != FP8:
        return key_value.to(kept_as), None
    scales = (key_value.abs().amax(dim=-1, keepdim=True) / 448).half()
    return (key_value / scales.float()).clamp(-448, 448).to(FP8), scales


def poison(kept: torch.Tensor, where: torch.Tensor) -> None:
    if kept.dtype == FP8:
        kept.view(torch.uint8)[where] = 0x7F
    else:
        kept[where] = float("nan")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher takes fresh is NaN, so that a place that is read or kept unwritten shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        made = fresh(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() and made.numel() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


SHAPES = [((9, 3), 64), ((8, 8), 64), ((8, 1), 96), ((4, 4), 128), ((8, 2), 128), ((2, 1), 256)]
# What one bit more or less in the last place is.
# A GPU's own exponentials and divisions are off by a last bit or two.
_FLOAT32_ERROR = 2e-5 if DEVICE.type == "cuda" else 2e-6
TOLERANCES = {torch.float32: _FLOAT32_ERROR, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.mark.parametrize(("heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("window", [None, 40])
def test_reference_says_what_each_row_and_head_sees(
    heads: tuple[int, int], head_dim: int, window: int | None
):
    rows = make_rows(heads, head_dim, [1, 300, 16, 41], window=window, is_permuted=True)
    torch.testing.assert_close(rows.reference(), rows.plain(), rtol=0, atol=2e-6)


def test_reference_reads_tables_in_pieces_where_they_are_large(monkeypatch: pytest.MonkeyPatch):
    rows = make_rows((8, 2), 64, [1, 300, 16, 170], window=100)
    at_once = rows.reference()
    monkeypatch.setattr(paged_decode, "MAX_REFERENCE_BYTES", 1)
    torch.testing.assert_close(rows.reference(), at_once, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype"),
    [
        (*shape, dtype)
        for shape, narrow in zip(SHAPES, [torch.float16, torch.bfloat16] * 3, strict=True)
        for dtype in (torch.float32, narrow)
    ],
)
def test_kernels_equal_the_reference(heads: tuple[int, int], head_dim: int, dtype: torch.dtype):
    rows = make_rows(heads, head_dim, [150, 16], dtype=dtype, is_permuted=True)
    assert_alike(rows.launch(), rows.reference())


@pytest.mark.parametrize("heads", [(9, 3), (3, 3), (32, 1), (40, 1)])
def test_kernels_see_every_length_and_nothing_beyond(heads: tuple[int, int]):
    lengths = [1, 15, 16, 17, 64, 65, 300]
    rows = make_rows(heads, 64, lengths if heads[1] > 1 else lengths[3:], dtype=torch.float16)
    assert_alike(rows.launch(), rows.reference())


@pytest.mark.parametrize("heads", [(4, 2), (3, 3)])
@pytest.mark.parametrize("window", [1, 16, 50, 1000])
def test_window_starts_within_a_block(heads: tuple[int, int], window: int):
    rows = make_rows(heads, 64, [1, 15, 51, 200], window=window)
    assert_alike(rows.launch(), rows.reference())


@pytest.mark.parametrize(("heads", "head_dim"), [((9, 3), 64), ((4, 4), 96), ((4, 2), 256)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("has_float8", [False, True])
def test_fp8_is_read_with_its_scales_whoever_decodes_it(
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    has_float8: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(paged_decode, "_device_facts", lambda device: (4, has_float8))
    rows = make_rows(heads, head_dim, [1, 150], dtype=dtype, kept_as=FP8, is_permuted=True)
    assert_alike(rows.launch(), rows.reference())


def test_keys_may_be_kept_wider_than_queries():
    rows = make_rows((4, 2), 64, [70], dtype=torch.float16, kept_as=torch.float32)
    assert_alike(rows.launch(), rows.reference())


@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
@pytest.mark.parametrize("kept_as", [torch.float16, FP8])
def test_nan_that_a_row_sees_reaches_that_row_alone(heads: tuple[int, int], kept_as: torch.dtype):
    rows = make_rows(heads, 64, [70, 70], dtype=torch.float16, kept_as=kept_as)
    block = int(rows.rows.tables[rows.rows.slots[0], 2])
    poison(rows.layer.values, torch.tensor([block * BLOCK_SIZE + 3], device=DEVICE))
    attended = rows.launch()
    assert attended[0].isnan().all()
    assert attended[1].isfinite().all()


@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
def test_one_program_a_head_is_one_launch(heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    rows = make_rows(heads, 64, [1, 90], dtype=torch.float16, is_permuted=True)
    with counted() as split:
        in_parts = rows.launch()
    monkeypatch.setattr(paged_decode, "num_splits", lambda *sizes: 1)
    with counted() as whole:
        at_once = rows.launch()
    assert split == {"paged_decode": 1, "paged_decode_merge": 1}
    assert whole == {"paged_decode": 1}
    assert_alike(at_once, in_parts)


def test_queries_may_lie_apart():
    rows = make_rows((4, 2), 64, [20, 3])
    expected = rows.launch()
    apart = torch.randn(2, 7, 64, device=DEVICE)
    apart[:, 2:6] = rows.query
    rows.query = apart[:, 2:6]
    assert torch.equal(rows.launch(), expected)
    rows.query = rows.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(rows.launch(), expected)
    assert_alike(rows.reference(), expected)
    rows.query = rows.query.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(rows.launch(), expected)
    assert_alike(rows.reference(), expected)


@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
def test_an_answer_is_the_same_each_time(heads: tuple[int, int]):
    rows = make_rows(heads, 64, [290, 33], dtype=torch.float16)
    assert torch.equal(rows.launch(), rows.launch())


def test_places_beyond_2_to_the_31_are_reached():
    """A layer of 2.2 billion numbers, of which the system hands out only what is touched."""
    head_dim, num_blocks = 64, 2**31 // (2 * 64 * BLOCK_SIZE) + 10
    kept = torch.empty(num_blocks * BLOCK_SIZE, 2, 1, head_dim, dtype=FP8, device=DEVICE)
    scales = torch.empty(num_blocks * BLOCK_SIZE, 2, 1, 1, dtype=torch.float16, device=DEVICE)
    last = slice((num_blocks - 1) * BLOCK_SIZE, None)
    few = torch.randn(BLOCK_SIZE, 2, 1, head_dim, device=DEVICE)
    codes, theirs = keep(few, FP8)
    assert theirs is not None
    kept[last], scales[last] = codes, theirs
    table = torch.tensor([[num_blocks - 1]], device=DEVICE)
    rows = DecodeRows(*torch.tensor([[0], [12]], device=DEVICE), table, BLOCK_SIZE)
    near = DecodeRows(rows.slots, rows.positions, torch.zeros_like(table), BLOCK_SIZE)
    for num_heads in (1, 4):
        query = torch.randn(1, num_heads, head_dim, device=DEVICE)
        asked = {"scale": 0.1, "window": None, "order": None}
        far = decode_attention(query, KVLayer(kept, scales), rows, **asked)
        assert torch.equal(far, decode_attention(query, KVLayer(codes, theirs), near, **asked))
        torch.testing.assert_close(
            far, reference(query, KVLayer(kept, scales), rows, **asked), rtol=0, atol=_FLOAT32_ERROR
        )


def test_splits_follow_from_shapes_and_are_no_more_than_a_card_has_use_for():
    assert num_splits(1, 32, 4096, 132) == 17
    assert num_splits(32, 32, 4096, 132) == 1
    assert num_splits(1, 8, 65536, 132) == 32
    assert num_splits(1, 8, 128, 132) == 2
    assert num_splits(1, 8, 16, 132) == 1


def test_split_buffers_are_as_large_as_what_a_launch_takes(monkeypatch: pytest.MonkeyPatch):
    rows = make_rows((8, 2), 96, [20, 200, 3])
    taken = []
    fresh = torch.Tensor.new_empty

    def noted(*args: object, **kwargs: object) -> torch.Tensor:
        made = fresh(*args, **kwargs)
        if made.numel():  # the interpreter takes some of no size
            taken.append(made)
        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", noted)
    rows.launch()
    _, *parts = taken
    max_tokens = rows.rows.tables.shape[1] * BLOCK_SIZE
    processors, _ = paged_decode._device_facts(DEVICE)
    expected = split_buffer_bytes(3, 8, 2, 96, max_tokens, processors)
    assert sum(part.nbytes for part in parts) == expected > 0
    assert split_buffer_bytes(64, 32, 32, 128, 4096, 132) == 0


def test_compile_cases_give_every_argument():
    for case in compile_cases():
        assert list(case.signature) == list(case.kernel.arg_names)
        constants = {name for name, kind in case.signature.items() if kind == "constexpr"}
        assert constants == set(case.constants)
