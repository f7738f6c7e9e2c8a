"""The memory that holds keys and values, one tensor a layer, and how much of it fits.

Which slot a token goes to is decided elsewhere (`block_manager`, `model_input`); here is only the
storage. A slot is a token's place: block `b` of `block_size` tokens is slots `b * block_size` and
on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.errors import NotEnoughBlocksError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


def num_kv_heads(config: PretrainedConfig) -> int:
    """How many heads of keys and values each layer has."""
    text = config.get_text_config(decoder=True)
    heads: int = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return heads


def head_dim(config: PretrainedConfig) -> int:
    """How wide each head is."""
    text = config.get_text_config(decoder=True)
    width: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return width


def num_layers(config: PretrainedConfig) -> int:
    """How many layers keep keys and values."""
    layers: int = config.get_text_config(decoder=True).num_hidden_layers
    return layers


def kv_dtype(model: PreTrainedModel) -> torch.dtype:
    """What keys and values are kept in: float32 on CPU, where attention is, else the model's."""
    return torch.float32 if model.device.type == "cpu" else model.dtype


def kv_block_bytes(config: PretrainedConfig, block_size: int, dtype: torch.dtype) -> int:
    """How much memory one block takes, all layers together."""
    numbers = 2 * num_layers(config) * block_size * num_kv_heads(config) * head_dim(config)
    return numbers * dtype.itemsize


def resolve_num_blocks(
    free_bytes: int,
    block_bytes: int,
    *,
    max_model_len: int,
    max_num_seqs: int,
    block_size: int = 16,
) -> int:
    """How many KV blocks to make of the memory that the weights left.

    No more than `max_num_seqs` sequences of the full length could ever use. Raises
    `NotEnoughBlocksError` where not even one would fit.
    """
    per_sequence = -(-max_model_len // block_size)
    fitting = free_bytes // block_bytes - 1  # one more is kept empty, see KVCache
    if fitting < per_sequence:
        raise NotEnoughBlocksError(
            f"one sequence of {max_model_len} tokens takes {(per_sequence + 1) * block_bytes} bytes"
            f" of KV cache, {free_bytes} are free; lower max_model_len or free memory"
        )
    return min(fitting, per_sequence * max_num_seqs)


class KVCache:
    """Keys and values of every cached token, [num_slots, 2, kv_heads, head_dim] a layer.

    Keys and values of a token lie together, so that one call writes or gathers both.

    One block more than asked for is kept, `empty_block`. Short block tables are filled up with it,
    so that what a masked position holds is always finite: 0 × NaN is NaN, and would cross from one
    sequence to another.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.empty_block = num_blocks
        self.device = device
        shape = ((num_blocks + 1) * block_size, 2, num_kv_heads, head_dim)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        # Gathered blocks go to the same memory each time: fresh memory of this size comes from the
        # system page by page, which doubled the time of a gather (0.5 ms a layer at 1 024 tokens).
        self._scratch = torch.empty(0, dtype=dtype, device=device)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one slot in one layer."""
        return self.layers[0][0].nbytes

    def write(self, layer_index: int, slots: Tensor, key_value: Tensor) -> None:
        """Store key_value [num_tokens, 2, kv_heads, head_dim] at slots [num_tokens] int64."""
        self.layers[layer_index].index_copy_(0, slots, key_value)

    def gather(self, layer_index: int, blocks: Tensor) -> Tensor:
        """Copy blocks [num_blocks] int64 side by side; the copy is good until the next gather.

        Returns [num_blocks * block_size, 2, kv_heads, head_dim].
        """
        layer = self.layers[layer_index]
        token = layer.shape[1:]
        by_block = layer.view(-1, self.block_size * token.numel())
        needed = blocks.shape[0] * by_block.shape[1]
        if self._scratch.numel() < needed:
            self._scratch = self._scratch.new_empty(needed)
        out = self._scratch[:needed].view(blocks.shape[0], by_block.shape[1])
        return torch.index_select(by_block, 0, blocks, out=out).view(-1, *token)

    def clear(self, blocks: Iterable[int]) -> None:
        """Forget what blocks hold, so that NaN left behind cannot meet a later sequence."""
        for layer in self.layers:
            by_block = layer.view(-1, self.block_size, *layer.shape[1:])
            for block in blocks:
                by_block[block].zero_()
