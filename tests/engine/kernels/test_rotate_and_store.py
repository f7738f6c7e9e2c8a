"""The kernel beside its reference; on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from engine.attention.kv_cache import KVCache
from engine.config import KVDtype
from engine.kernels.launches import counted
from engine.kernels.step_kernels import HeadNorm, KVLayer
from tests.engine.kernels.poisoned import (
    DEVICE,
    apart,
    assert_close,
    poison_new_memory,
    same_bits,
)

if TYPE_CHECKING:
    from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from engine.kernels import rotate_and_store as kernel
from engine.kernels.optional_triton import tl, triton
from engine.kernels.rotate_and_store import reference, rotate_and_store

F32, F16, BF16, FP8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
NUM_POSITIONS = 40
# A GPU multiplies and adds at once where torch rounds between, which may move a code.
IS_EXACT = DEVICE.type == "cpu"


@dataclass
class Case:
    """A call, and a cache whose every byte is NaN."""

    num_rows: int
    num_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = F32
    kept_as: torch.dtype = F32
    has_norm: bool = False

    def __post_init__(self) -> None:
        seeded = torch.Generator().manual_seed(0)
        width = (self.num_heads + 2 * self.kv_heads) * self.head_dim
        qkv = torch.randn(self.num_rows, width, generator=seeded)
        self.qkv = apart(qkv.to(DEVICE, self.dtype))
        self.rotation = rotation_table(self.head_dim).to(self.dtype)
        positions = torch.randint(NUM_POSITIONS, (self.num_rows,), generator=seeded)
        self.positions = positions.to(DEVICE)
        slots = torch.randperm(self.num_rows + 3, generator=seeded)[: self.num_rows]
        self.slots = slots.to(DEVICE)
        self.head_norm = None
        if self.has_norm:
            norms = torch.randn(2, self.head_dim, generator=seeded).to(DEVICE, self.dtype)
            self.head_norm = HeadNorm(norms[0], norms[1], 1e-6)

    def layer(self) -> KVLayer:
        shape = (self.num_rows + 3, 2, self.kv_heads, self.head_dim)
        values = torch.full(shape, float("nan"), device=DEVICE).to(self.kept_as)
        scales = None
        if self.kept_as == FP8:
            scales = torch.full((*shape[:-1], 1), float("nan"), dtype=F16, device=DEVICE)
        return KVLayer(values, scales)

    def expect(self) -> tuple[Tensor, KVLayer]:
        return self._run(reference)

    def launch(self) -> tuple[Tensor, KVLayer]:
        return self._run(rotate_and_store)

    def _run(self, function) -> tuple[Tensor, KVLayer]:
        layer = self.layer()
        query = function(
            self.qkv,
            self.rotation,
            self.positions,
            self.slots,
            layer,
            num_heads=self.num_heads,
            head_norm=self.head_norm,
        )
        return query, layer


def rotation_table(head_dim: int) -> Tensor:
    angles = torch.arange(NUM_POSITIONS)[:, None] / 100 ** (torch.arange(head_dim // 2) / head_dim)
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
    return table.to(DEVICE)


def read(layer: KVLayer) -> Tensor:
    if layer.scales is None:
        return layer.values
    return layer.values.float() * layer.scales.float()


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 9, 3, 64),
        Case(3, 9, 3, 64, F16, F16),
        Case(3, 9, 3, 96, BF16, BF16),
        Case(2, 8, 8, 128, F16, F16, has_norm=True),
        Case(2, 8, 1, 256, F32, F16, has_norm=True),
        Case(5, 3, 3, 80, BF16, BF16, has_norm=True),
        Case(1, 2, 1, 128, F16, F32),
    ],
    ids=str,
)
def test_it_rotates_and_stores_like_the_reference(monkeypatch: pytest.MonkeyPatch, case: Case):
    poison_new_memory(monkeypatch)
    before = case.qkv.clone()
    expected, expected_layer = case.expect()
    with counted() as launches:
        query, layer = case.launch()
    assert_close(query, expected)
    assert_close(layer.values[case.slots], expected_layer.values[case.slots])
    assert same_bits(case.qkv, before)
    assert launches == {"rotate_and_store": 1}


@pytest.mark.parametrize("kept_as", [F32, BF16, FP8])
def test_other_slots_stay_as_they_were(kept_as: torch.dtype):
    case = Case(2, 9, 3, 64, kept_as=kept_as)
    _, layer = case.launch()
    others = torch.ones(case.num_rows + 3, dtype=torch.bool)
    others[case.slots.cpu()] = False
    untouched = case.layer()
    assert same_bits(layer.values[others], untouched.values[others])
    assert layer.values[case.slots].float().isfinite().all()
    if layer.scales is not None:
        assert same_bits(layer.scales[others], untouched.scales[others])


@pytest.mark.parametrize(
    "case",
    [Case(3, 9, 3, 64, F32, FP8), Case(2, 4, 4, 128, F16, FP8), Case(1, 8, 1, 96, BF16, FP8)],
    ids=str,
)
def test_fp8_has_the_very_bits_that_the_reference_keeps(case: Case):
    """At numbers of any size: from what the least scale makes zero to far beyond float16's."""
    size = 10.0 ** torch.linspace(-7, 3, case.qkv.shape[1], device=DEVICE)
    case.qkv.mul_(size.to(case.dtype))
    _, expected = case.expect()
    _, layer = case.launch()
    kinds = slice(0 if IS_EXACT else 1, 2)
    for found, wanted in ((layer.values, expected.values), (layer.scales, expected.scales)):
        assert same_bits(found[case.slots, kinds], wanted[case.slots, kinds])
    assert_read_close(layer, expected, case.slots)


def test_fp8_of_normed_heads_reads_like_the_reference():
    case = Case(3, 8, 2, 128, BF16, FP8, has_norm=True)
    query, layer = case.launch()
    expected_query, expected = case.expect()
    assert_close(query, expected_query)
    assert_read_close(layer, expected, case.slots)


def assert_read_close(found: KVLayer, expected: KVLayer, slots: Tensor) -> None:
    """Hold numbers within one step of e4m3: norms may differ in their last bit."""
    torch.testing.assert_close(read(found)[slots], read(expected)[slots], rtol=1 / 8, atol=1e-6)


def test_fp8_is_what_the_cache_itself_would_have_written():
    case = Case(2, 1, 3, 64, F32, FP8)
    case.positions.zero_()  # keys stay as they are
    _, layer = case.launch()
    cache = KVCache(
        num_layers=1,
        num_blocks=5,
        block_size=1,
        num_kv_heads=3,
        head_dim=64,
        kept_as=KVDtype.FP8,
        dtype=F32,
        device=DEVICE,
    )
    cache.write(0, case.slots, case.qkv[:, 64:].reshape(2, 2, 3, 64))
    for row, slot in enumerate(case.slots.tolist()):
        assert torch.equal(cache.read_run(0, slot, 1)[0], read(layer)[slot]), row


@pytest.mark.parametrize("kept_as", [F16, FP8])
@pytest.mark.parametrize("column", [0, 40], ids=["first half", "second half"])
def test_nan_is_kept_so_that_the_logits_show_it(kept_as: torch.dtype, column: int):
    case = Case(1, 1, 1, 64, F32, kept_as)
    case.qkv[0, 64 + column] = float("nan")
    _, layer = case.launch()
    _, expected = case.expect()
    key, value = read(layer)[case.slots[0]]
    assert torch.equal(key.isnan(), read(expected)[case.slots[0], 0].isnan())
    assert key.isnan().any()
    assert value.isfinite().all()


def test_the_first_position_leaves_heads_as_they_are():
    case = Case(2, 4, 2, 64)
    case.positions.zero_()
    query, layer = case.launch()
    assert torch.equal(query.flatten(1), case.qkv[:, : 4 * 64])
    assert torch.equal(layer.values[case.slots].flatten(1), case.qkv[:, 4 * 64 :])


def test_rows_that_pad_a_step_may_share_a_slot_and_the_others_keep_theirs():
    case = Case(300, 1, 1, 64)
    case.slots[20:] = int(case.slots[299])
    query, layer = case.launch()
    expected, _ = case.expect()
    assert_close(query, expected)
    values = case.qkv[:, 128:]
    for row in (0, 7, 19):
        assert torch.equal(layer.values[case.slots[row], 1, 0], values[row])
    used = ~layer.values.isnan().flatten(1).any(dim=1)
    assert used.nonzero().flatten().tolist() == case.slots.unique().tolist()
    shared = layer.values[case.slots[299], 1, 0]
    assert (values[20:] == shared).all(dim=1).any()


def test_slots_may_lie_beyond_what_32_bits_count():
    """Memory that nobody touches takes none."""
    case = Case(2, 1, 1, 64, F32, FP8)
    num_slots = 2**31 // 128 + 2
    values = torch.empty((num_slots, 2, 1, 64), dtype=FP8, device=DEVICE)
    layer = KVLayer(values, torch.empty((num_slots, 2, 1, 1), dtype=F16, device=DEVICE))
    slots = torch.tensor([num_slots - 1, 1], device=DEVICE)
    rotate_and_store(
        case.qkv, case.rotation, case.positions, slots, layer, num_heads=1, head_norm=None
    )
    _, expected = case.expect()
    assert same_bits(values[slots, 1:], expected.values[case.slots, 1:])
    assert same_bits(layer.scales[slots, 1:], expected.scales[case.slots, 1:])


def test_rows_may_lie_further_apart_than_32_bits_count():
    """Memory that nobody touches takes none."""
    case = Case(3, 2, 1, 64, F16, F16)
    stride = 2**30
    memory = torch.empty(2 * stride + 256, dtype=F16, device=DEVICE)
    expected, kept = case.launch()
    case.qkv = memory.as_strided((3, 256), (stride, 1)).copy_(case.qkv)
    query, layer = case.launch()
    assert same_bits(query, expected)
    assert same_bits(layer.values, kept.values)


@triton.jit
def _encode(numbers: tl.tensor, codes: tl.tensor, size: tl.constexpr) -> None:
    places = tl.arange(0, size)
    tl.store(codes + places, kernel._e4m3(tl.load(numbers + places)))


def test_every_float_is_encoded_as_pytorch_does():
    """Each sign, exponent and leading bits of a mantissa, with what decides rounding behind it."""
    leading = torch.arange(2**16, dtype=torch.int64).repeat_interleave(4) << 16
    behind = torch.tensor([0, 1, 0x8000, 0xFFFF]).repeat(2**16)
    numbers = (leading | behind).to(torch.int64).to(torch.uint32).view(F32).to(DEVICE)
    codes = torch.empty(numbers.shape, dtype=torch.uint8, device=DEVICE)
    _encode[(1,)](numbers, codes, size=len(numbers))
    expected = numbers.clamp(-448, 448).to(FP8)
    is_nan = numbers.isnan()
    assert torch.equal(codes[~is_nan], expected.view(torch.uint8)[~is_nan])
    assert codes[is_nan].bitwise_and(0x7F).eq(0x7F).all()
