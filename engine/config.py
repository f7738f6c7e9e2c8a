"""The engine's sizes, as plain numbers.

Whatever could be "auto" has been answered by whoever builds this (see
`kv_cache.resolve_num_blocks`); from here on nothing is guessed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from engine.errors import NotEnoughBlocksError

if TYPE_CHECKING:
    from pathlib import Path

# What computes a layer between its linear layers. "auto": the own layers of a CPU, else "triton".
StepKernelsName: TypeAlias = Literal["auto", "triton", "torch"]
# How a GPU attends with a prompt's tokens. "auto": by flash attention where it takes the model's
# numbers, else by `scaled_dot_product_attention`.
PromptAttentionName: TypeAlias = Literal["auto", "sdpa"]
# Which of several ways a CPU multiplies in, and for how many rows: what was fastest when tried
# here, or as constants have it.
KernelChoice: TypeAlias = Literal["measured", "fixed"]
# What a CPU computes with. "auto": the kernels compiled from C++ where they can run, else PyTorch's
# (`engine.execution.cpu_kernels`). Without effect on a GPU.
CpuKernelsName: TypeAlias = Literal["auto", "native", "torch"]


class KVDtype(enum.Enum):
    """What keys and values are kept in; the values are what settings say."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FP8 = "fp8"  # e4m3, with a scale for each token's head


_AT_LEAST_ONE = (
    *("max_num_seqs", "max_num_batched_tokens", "num_blocks", "block_size"),
    "background_every_steps",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much the engine may hold and do at once."""

    max_num_seqs: int  # sequences that advance together in one step
    max_num_batched_tokens: int  # tokens that a step computes
    max_model_len: int  # prompt and answer together
    num_blocks: int  # blocks of the KV cache
    block_size: int = 16  # tokens per block
    kv_dtype: KVDtype | None = None  # None: float32 on CPU, else the model's own
    has_prefix_cache: bool = True  # sequences of different requests share prefixes, too

    # Waiting sequences, counted before they first run; None does not bound.
    max_queued_seqs: int | None = None
    max_queued_tokens: int | None = None
    max_queue_wait_s: float | None = None  # at the measured rate of prefill

    # Beside others the background takes part in one of so many steps, see `scheduling.background`.
    background_every_steps: int = 1

    num_speculative_tokens: int = 0  # most tokens drafted for a sequence in a step; 0 drafts none

    # Decode steps as graphs recorded beforehand, or each as it comes. None: each as it comes on
    # CPU, where nothing is gained by the former.
    enforce_eager: bool | None = None
    step_kernels: StepKernelsName = "auto"
    prompt_attention: PromptAttentionName = "auto"
    kernel_choice: KernelChoice = "fixed"  # without effect where `is_batch_invariant`
    kernel_choice_folder: Path | None = None  # keeps what was measured; None: measure each time
    cpu_kernels: CpuKernelsName = "auto"
    # Every row is computed by itself, in an order that nothing else changes; slow.
    is_batch_invariant: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes with which no sequence, or not every allowed one, could ever run."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, fewer than max_num_seqs"
                f" {self.max_num_seqs}; every sequence of a step computes at least one token"
            )
        if self.num_speculative_tokens < 0:
            raise ValueError(
                f"num_speculative_tokens is {self.num_speculative_tokens}; give 0 for none"
            )
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
