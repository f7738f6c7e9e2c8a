"""The engine's sizes, as plain numbers.

Whatever could be "auto" has been answered by whoever builds this (see
`kv_cache.resolve_num_blocks`); from here on nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import NotEnoughBlocksError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much the engine may hold and do at once."""

    max_num_seqs: int  # sequences that advance together in one step
    max_num_batched_tokens: int  # prompt tokens a step takes in; one longer prompt still runs
    max_model_len: int  # prompt and answer together
    num_blocks: int  # blocks of the KV cache
    block_size: int = 16  # tokens per block
    # Attention adds up in an order that does not depend on the batch; costs speed with many
    # sequences. Linear layers are their weights' own business.
    is_batch_invariant: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes with which no sequence, or not every allowed one, could ever run."""
        for name in ("max_num_seqs", "max_num_batched_tokens", "num_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.max_model_len < 2:
            raise ValueError(
                f"max_model_len is {self.max_model_len}; give at least 2: prompt and answer"
            )
        if self.num_blocks * self.block_size < self.max_model_len:
            raise NotEnoughBlocksError(
                f"the KV cache holds {self.num_blocks * self.block_size} tokens ({self.num_blocks}"
                f" blocks of {self.block_size}), fewer than max_model_len {self.max_model_len};"
                " give it more memory, or lower max_model_len"
            )
