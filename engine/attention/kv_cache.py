"""The memory that holds keys and values, one tensor a layer, and how much of it fits.

Which slot a token goes to is decided elsewhere (`block_manager`, `model_input`); here is only the
storage. A cache slot is a token's place: block `b` of `block_size` tokens is slots
`b * block_size` and on.

Attention computes in one type, the cache may keep another: what is read back is what a narrower
type left of it, and `rounded` says so for tokens that are attended to before they were ever read.
fp8 (e4m3) keeps a float16 scale beside each token's head, so that its largest number uses the
whole range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.config import KVDtype
from engine.errors import NotEnoughBlocksError
from engine.kernels.fp8 import quantize, widen
from engine.kernels.step_kernels import KVLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

STORED_AS = {
    KVDtype.FLOAT32: torch.float32,
    KVDtype.FLOAT16: torch.float16,
    KVDtype.BFLOAT16: torch.bfloat16,
    KVDtype.FP8: torch.float8_e4m3fn,
}


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


def attention_dtype(model: PreTrainedModel) -> torch.dtype:
    """What attention computes in: float32 on CPU, else the model's own type."""
    return torch.float32 if model.device.type == "cpu" else model.dtype


def resolve_kv_dtype(model: PreTrainedModel, asked: KVDtype | None) -> KVDtype:
    """What keys and values are kept in: what is asked for, else what attention computes in."""
    if asked is not None:
        return asked
    dtype = attention_dtype(model)
    return next(kind for kind, stored in STORED_AS.items() if stored == dtype)


def kv_block_bytes(config: PretrainedConfig, block_size: int, dtype: KVDtype) -> int:
    """How much memory one block takes, all layers together."""
    width = head_dim(config) * STORED_AS[dtype].itemsize
    if dtype is KVDtype.FP8:
        width += torch.float16.itemsize
    return 2 * num_layers(config) * block_size * num_kv_heads(config) * width


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


# What `gather_slots` reads at a time where another type is kept, in that type's stead: copying so
# much takes a GPU longer than launching the copies does.
MAX_WIDENED_BYTES = 32 * 2**20


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
        kept_as: KVDtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """dtype: what is written and read, whatever it is kept as."""
        self.block_size = block_size
        self.empty_block = num_blocks
        self.device = device
        self.dtype = dtype
        self._stored = STORED_AS[kept_as]
        shape = ((num_blocks + 1) * block_size, 2, num_kv_heads, head_dim)
        self._layers = [
            torch.zeros(shape, dtype=self._stored, device=device) for _ in range(num_layers)
        ]
        self._scales: list[Tensor] = []
        if kept_as is KVDtype.FP8:
            self._scales = [
                torch.ones((*shape[:-1], 1), dtype=torch.float16, device=device)
                for _ in range(num_layers)
            ]
        # Gathered blocks go to the same memory each time: fresh memory of this size comes from the
        # system page by page, which doubled the time of a gather (0.5 ms a layer at 1 024 tokens).
        kept = torch.uint8 if self._scales else self._stored
        self._scratch = torch.empty(0, dtype=kept, device=device)

    @property
    def bytes_per_token(self) -> int:
        """Memory that reading one slot of one layer takes."""
        return self._layers[0][0].numel() * self.dtype.itemsize

    @property
    def is_exact(self) -> bool:
        """Whether what is read is what was written, to the last bit."""
        return self._stored == self.dtype

    def layer(self, layer_index: int) -> KVLayer:
        """Give a layer's memory as kernels take it."""
        scales = self._scales[layer_index] if self._scales else None
        return KVLayer(self._layers[layer_index], scales)

    def write(self, layer_index: int, slots: Tensor, key_value: Tensor) -> None:
        """Store key_value [num_tokens, 2, kv_heads, head_dim] at slots [num_tokens] int64."""
        layer = self._layers[layer_index]
        if not self._scales:
            layer.index_copy_(0, slots, key_value.to(self._stored))
            return
        codes, scales = quantize(key_value)
        # Bytes, because copying by index knows no float8.
        layer.view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))
        self._scales[layer_index].index_copy_(0, slots, scales)

    def rounded(self, key_value: Tensor) -> Tensor:
        """Return key_value as it would be read back."""
        if self.is_exact:
            return key_value
        if not self._scales:
            return key_value.to(self._stored).to(self.dtype)
        return widen(*quantize(key_value), self.dtype)

    def read_run(self, layer_index: int, first_slot: int, num_tokens: int) -> Tensor:
        """Read neighbouring slots, in place where they are kept in the type that is read.

        Returns [num_tokens, 2, kv_heads, head_dim].
        """
        kept = self._layers[layer_index].narrow(0, first_slot, num_tokens)
        if not self._scales:
            return kept if self.is_exact else kept.to(self.dtype)
        scales = self._scales[layer_index].narrow(0, first_slot, num_tokens)
        return widen(kept, scales, self.dtype)

    def gather_slots(self, layer_index: int, slots: Tensor) -> Tensor:
        """Copy slots [num_tokens] int64 side by side, to memory of their own.

        Returns [num_tokens, 2, kv_heads, head_dim].
        """
        layer = self._layers[layer_index]
        if self.is_exact:
            return layer.index_select(0, slots)
        gathered = layer.new_empty((slots.shape[0], *layer.shape[1:]), dtype=self.dtype)
        # Piece by piece, or what was kept would lie beside all of what is read.
        at_once = max(1, MAX_WIDENED_BYTES // self.bytes_per_token)
        pieces = zip(torch.split(gathered, at_once), torch.split(slots, at_once), strict=True)
        for wide, those in pieces:
            kept = layer.view(torch.uint8) if self._scales else layer  # indices know no float8
            wide.copy_(kept.index_select(0, those).view(self._stored))
            if self._scales:
                scales = self._scales[layer_index].index_select(0, those)
                wide.mul_(scales.to(self.dtype))
        return gathered

    def gather(self, layer_index: int, blocks: Tensor, *, is_fresh: bool = False) -> Tensor:
        """Copy blocks [num_blocks] int64 side by side; the copy is good until the next gather.

        is_fresh: to memory of its own, as a graph needs it. Returns [num_blocks * block_size, 2,
        kv_heads, head_dim].
        """
        layer = self._layers[layer_index]
        token = layer.shape[1:]
        by_block = layer.view(-1, self.block_size * token.numel())
        if self._scales:  # copying by index knows no float8
            by_block = by_block.view(torch.uint8)
        if is_fresh:
            gathered = by_block.index_select(0, blocks)
        else:
            out = self._scratch_for(blocks.shape[0], by_block)
            gathered = torch.index_select(by_block, 0, blocks, out=out)
        if not self._scales:
            gathered = gathered.view(-1, *token)
            return gathered if self.is_exact else gathered.to(self.dtype)
        scales = self._scales[layer_index].view(-1, self.block_size * 2 * token[1])
        found = scales.index_select(0, blocks).view(-1, 2, token[1], 1)
        return widen(gathered.view(self._stored).view(-1, *token), found, self.dtype)

    def _scratch_for(self, num_blocks: int, by_block: Tensor) -> Tensor:
        needed = num_blocks * by_block.shape[1]
        if self._scratch.numel() < needed:
            self._scratch = by_block.new_empty(needed)
        return self._scratch[:needed].view(num_blocks, by_block.shape[1])

    def clear(self, blocks: Sequence[int] | Tensor) -> None:
        """Forget what blocks hold, so that NaN left behind cannot meet a later sequence.

        blocks: numbers of the host, or of the device: [n] int64.
        """
        if not len(blocks):
            return
        which = blocks if isinstance(blocks, torch.Tensor) else torch.tensor(blocks)
        which = which.to(self.device)
        for layer in (*self._layers, *self._scales):
            numbers = layer.view(torch.uint8) if layer.dtype == self._stored else layer
            numbers.view(-1, self.block_size, *numbers.shape[1:]).index_fill_(0, which, 0)
