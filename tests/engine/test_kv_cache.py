from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from engine.errors import NotEnoughBlocksError
from engine.kv_cache import KVCache, kv_block_bytes, resolve_num_blocks


def make_cache() -> KVCache:
    return KVCache(
        num_layers=2,
        num_blocks=4,
        block_size=2,
        num_kv_heads=3,
        head_dim=6,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_what_is_written_to_a_slot_is_gathered_with_its_block():
    cache = make_cache()
    key_value = torch.randn(2, 2, 3, 6)
    cache.write(1, torch.tensor([6, 1]), key_value)
    gathered = cache.gather(1, torch.tensor([3, 0]))
    assert torch.equal(gathered[0], key_value[0])
    assert torch.equal(gathered[3], key_value[1])
    assert gathered.shape == (4, 2, 3, 6)
    assert not cache.gather(0, torch.tensor([3, 0])).any()


def test_gathering_again_uses_the_same_memory():
    cache = make_cache()
    first = cache.gather(0, torch.tensor([0, 1, 2]))
    assert cache.gather(1, torch.tensor([2])).data_ptr() == first.data_ptr()


def test_cleared_blocks_hold_zeros_in_every_layer():
    cache = make_cache()
    for layer in cache.layers:
        layer.fill_(float("nan"))
    cache.clear([1, 4])
    for layer in cache.layers:
        assert not layer[2:4].any()
        assert not layer[8:10].any()
        assert layer[4:8].isnan().all()


def test_the_empty_block_is_beyond_those_handed_out():
    cache = make_cache()
    assert cache.empty_block == 4
    assert cache.gather(0, torch.tensor([cache.empty_block])).shape[0] == 2


def test_a_blocks_bytes_are_those_of_the_cache():
    config = LlamaConfig(
        hidden_size=30,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=6,
    )
    of_all_layers = sum(layer.nbytes for layer in make_cache().layers)
    assert kv_block_bytes(config, 2, torch.float32) * 5 == of_all_layers


def test_a_model_without_grouped_heads_keeps_one_for_each():
    config = GPT2Config(n_layer=2, n_head=4, n_embd=32)
    assert kv_block_bytes(config, 16, torch.float16) == 2 * 2 * 16 * 4 * 8 * 2


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
