from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.attention.kv_cache import KVCache
from engine.attention.native_step import NativeStep
from engine.attention.paged import attend_onward
from engine.config import KVDtype
from native.attention import Sequences
from tests.engine.native_models import WAYS, use

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4, 2, 64, 16
TABLES = torch.tensor([[3, 1, 6], [5, 0, 2]])


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return str(request.param)


def make_cache(kept_as: KVDtype) -> KVCache:
    cache = KVCache(
        num_layers=2,
        num_blocks=8,
        block_size=BLOCK_SIZE,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        kept_as=kept_as,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.layer(1).values.copy_(torch.randn(cache.layer(1).values.shape))
    return cache


def turned_by_nothing(num_positions: int) -> torch.Tensor:
    """A table of cosines and sines that leaves all as it is."""
    return torch.tensor([1.0, 0.0])[:, None].expand(num_positions, 2, HEAD_DIM).contiguous()


def slots_of(sequence: int, positions: torch.Tensor) -> torch.Tensor:
    return TABLES[sequence, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE


@pytest.mark.parametrize("kept_as", [KVDtype.FLOAT32, KVDtype.BFLOAT16, KVDtype.FLOAT16])
@pytest.mark.parametrize("are_pieces", [False, True], ids=["rows", "pieces"])
@pytest.mark.parametrize("window", [None, 9])
def test_rows_see_what_is_cached_and_themselves(
    window: int | None, are_pieces: bool, kept_as: KVDtype, way: str
):
    cache = make_cache(kept_as)
    positions = torch.arange(16, 40)
    slots = slots_of(1, positions)
    sequence = torch.ones(24, dtype=torch.int64)
    step = NativeStep(
        cache,
        slots,
        Sequences(TABLES, sequence, positions, BLOCK_SIZE),
        torch.tensor([[24, 16, 1]]) if are_pieces else None,
    )
    query, key_value = torch.randn(24, HEADS, HEAD_DIM), torch.randn(24, 2, KV_HEADS, HEAD_DIM)
    qkv = torch.cat((query, key_value[:, 0], key_value[:, 1]), dim=1).flatten(1)
    got = step.attend_joined(
        1,
        qkv,
        turned_by_nothing(40),
        num_heads=HEADS,
        head_norm=None,
        scale=0.125,
        window=window,
        rounded=None,
    )
    seen = cache.gather(1, TABLES[1])[:40]
    assert torch.equal(seen[16:], cache.rounded(key_value))
    wanted = attend_onward(query, seen, 16, 0.125, window)
    torch.testing.assert_close(got, wanted.flatten(1), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rounded", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("are_pieces", [False, True], ids=["rows", "pieces"])
def test_joined_rows_are_rotated_kept_and_attended_to(
    are_pieces: bool, rounded: torch.dtype | None, way: str
):
    cache = make_cache(KVDtype.BFLOAT16)
    positions = torch.arange(16, 40)
    seen = Sequences(TABLES, torch.ones(24, dtype=torch.int64), positions, BLOCK_SIZE)
    pieces = torch.tensor([[24, 16, 1]]) if are_pieces else None
    step = NativeStep(cache, slots_of(1, positions), seen, pieces)
    qkv = torch.randn(24, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    angles = torch.arange(40)[:, None] * 0.1 + torch.arange(HEAD_DIM // 2)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=1)
    rotation = torch.stack((angles.cos().repeat(1, 2), sin), dim=1)
    told: dict[str, Any] = {"scale": 0.125, "window": None}
    got = step.attend_joined(
        1, qkv.clone(), rotation, num_heads=HEADS, head_norm=None, rounded=rounded, **told
    )
    heads = qkv.view(24, -1, HEAD_DIM)
    turning = heads[:, : HEADS + KV_HEADS]
    cos, signed = rotation[positions].unsqueeze(2).unbind(1)
    turned = turning * cos + turning.roll(HEAD_DIM // 2, -1) * signed
    key_value = torch.stack((turned[:, HEADS:], heads[:, HEADS + KV_HEADS :]), dim=1)
    before = cache.gather(1, TABLES[1])[:16]
    kept = torch.cat((before, cache.rounded(key_value)))
    wanted = attend_onward(turned[:, :HEADS].contiguous(), kept, 16, 0.125, None).flatten(1)
    assert got.dtype == (rounded if are_pieces and rounded else torch.float32)
    is_exact = rounded is None or not are_pieces
    tolerance = 1e-3 if is_exact else 1e-2  # keys are kept in bfloat16, and may round otherwise
    torch.testing.assert_close(got.float(), wanted, rtol=tolerance, atol=tolerance)
