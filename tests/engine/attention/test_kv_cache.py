from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from engine.attention import kv_cache
from engine.attention.kv_cache import KVCache, kv_block_bytes, resolve_num_blocks
from engine.config import KVDtype
from engine.errors import NotEnoughBlocksError
from tests.engine.tiny_models import FUSED, make_engine, make_model

KINDS = list(KVDtype)


def make_cache(kept_as: KVDtype = KVDtype.FLOAT32) -> KVCache:
    return KVCache(
        num_layers=2,
        num_blocks=4,
        block_size=2,
        num_kv_heads=3,
        head_dim=6,
        kept_as=kept_as,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("kept_as", KINDS)
def test_what_is_written_is_read_as_the_type_rounds_it_one_way_or_another(kept_as: KVDtype):
    cache = make_cache(kept_as)
    key_value = torch.randn(2, 2, 3, 6)
    cache.write(1, torch.tensor([6, 1]), key_value)
    rounded = cache.rounded(key_value)
    gathered = cache.gather(1, torch.tensor([3, 0]))
    assert torch.equal(gathered[0], rounded[0])
    assert torch.equal(gathered[3], rounded[1])
    assert gathered.shape == (4, 2, 3, 6)
    assert not cache.gather(0, torch.tensor([3, 0])).any()
    assert torch.equal(cache.read_run(1, 6, 1)[0], rounded[0])


@pytest.mark.parametrize(
    ("kept_as", "bound"),
    [
        (KVDtype.FLOAT32, 0.0),
        (KVDtype.FLOAT16, 2**-11),
        (KVDtype.BFLOAT16, 2**-8),
        (KVDtype.FP8, 2**-4 + 2**-10),  # 3 bits of mantissa, and a scale that is rounded itself
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-3, 300.0])
def test_no_type_is_further_off_than_its_bits_say(kept_as: KVDtype, bound: float, size: float):
    """Relative to each number, but for those that are tiny: beside what half precision can hold,
    and for fp8, whose scale is such a number, beside their head's largest too."""
    key_value = torch.randn(100, 2, 3, 6) * size
    error = (make_cache(kept_as).rounded(key_value) - key_value).abs()
    largest = key_value.abs().amax(dim=-1, keepdim=True)
    half = torch.full_like(largest, 2**-24)
    smallest = {KVDtype.FP8: torch.maximum(largest * 2**-14, half), KVDtype.FLOAT16: half}
    tiny = smallest.get(kept_as, torch.zeros_like(largest))
    assert bool((error <= bound * key_value.abs() + tiny).all())


def test_each_token_and_head_has_its_own_fp8_scale():
    """One wild head or token leaves the others' precision alone."""
    key_value = torch.randn(4, 2, 3, 6)
    alone = make_cache(KVDtype.FP8).rounded(key_value)
    wild = key_value.clone()
    wild[0, 0, 0] *= 1000
    together = make_cache(KVDtype.FP8).rounded(wild)
    assert torch.equal(together[1:], alone[1:])
    assert torch.equal(together[0, 1], alone[0, 1])
    assert torch.equal(together[0, 0, 1:], alone[0, 0, 1:])


def test_a_head_of_zeros_stays_one_in_fp8():
    assert not make_cache(KVDtype.FP8).rounded(torch.zeros(1, 2, 3, 6)).any()


def test_gathering_again_uses_the_same_memory():
    cache = make_cache()
    first = cache.gather(0, torch.tensor([0, 1, 2]))
    assert cache.gather(1, torch.tensor([2])).data_ptr() == first.data_ptr()


@pytest.mark.parametrize("kept_as", KINDS)
def test_cleared_blocks_hold_zeros_in_every_layer(kept_as: KVDtype):
    cache = make_cache(kept_as)
    for layer in range(2):
        cache.write(layer, torch.arange(10), torch.full((10, 2, 3, 6), float("nan")))
    cache.clear([1, 4])
    for layer in range(2):
        assert not cache.gather(layer, torch.tensor([1, 4])).any()
        assert cache.gather(layer, torch.tensor([2, 3])).isnan().all()


def test_the_empty_block_is_beyond_those_handed_out():
    cache = make_cache()
    assert cache.empty_block == 4
    assert cache.gather(0, torch.tensor([cache.empty_block])).shape[0] == 2


@pytest.mark.parametrize("kept_as", KINDS)
def test_a_blocks_bytes_are_those_of_the_cache(kept_as: KVDtype):
    config = LlamaConfig(
        hidden_size=30,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=6,
    )
    cache = make_cache(kept_as)
    of_all_layers = sum(tensor.nbytes for tensor in (*cache._layers, *cache._scales))
    assert kv_block_bytes(config, 2, kept_as) * 5 == of_all_layers


def test_a_model_without_grouped_heads_keeps_one_for_each():
    config = GPT2Config(n_layer=2, n_head=4, n_embd=32)
    assert kv_block_bytes(config, 16, KVDtype.FLOAT16) == 2 * 2 * 16 * 4 * 8 * 2


@pytest.mark.parametrize("asked", [None, *KINDS])
def test_the_engine_keeps_what_it_is_told_to(asked: KVDtype | None):
    engine = make_engine(make_model(FUSED["llama"]), kv_dtype=asked)
    cache: KVCache = engine._runner._cache  # type: ignore[attr-defined]
    assert bool(cache._scales) == (asked is KVDtype.FP8)
    assert cache.is_exact == (asked in (None, KVDtype.FLOAT32))


def test_blocks_fill_the_memory_that_is_free():
    """One of them stays empty."""
    sizes = {"max_model_len": 64, "max_num_seqs": 100}
    assert resolve_num_blocks(1000, 100, **sizes) == 9


def test_no_more_blocks_are_made_than_can_ever_be_used():
    assert resolve_num_blocks(10**12, 100, max_model_len=65, max_num_seqs=3) == 15


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(NotEnoughBlocksError, match="takes 500 bytes of KV cache, 499 are free"):
        resolve_num_blocks(499, 100, max_model_len=64, max_num_seqs=1)
    assert resolve_num_blocks(500, 100, max_model_len=64, max_num_seqs=1) == 4


@pytest.mark.parametrize("kept_as", KINDS)
def test_slots_are_read_in_pieces_as_they_are_at_once(
    kept_as: KVDtype, monkeypatch: pytest.MonkeyPatch
):
    cache = make_cache(kept_as)
    cache.write(1, torch.arange(8), torch.randn(8, 2, 3, 6))
    slots = torch.tensor([7, 1, 1, 6, 0])
    at_once = cache.gather_slots(1, slots)
    assert torch.equal(at_once, cache.read_run(1, 0, 8)[slots])
    monkeypatch.setattr(kv_cache, "MAX_WIDENED_BYTES", 2 * cache.bytes_per_token)
    assert torch.equal(cache.gather_slots(1, slots), at_once)
