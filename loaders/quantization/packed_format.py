"""How one linear layer is packed: what settings tell, what layouts read and what kernels accept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QuantMethod = Literal["gptq", "awq", "compressed-tensors", "gguf"]


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """How one linear layer is packed."""

    quant_method: QuantMethod
    # Names the layout (`loaders.quantization.layouts`): "gptq" stores zero points minus one,
    # "gptq_v2" as they are; "gemm", "gemv" and "gemv_fast" are AWQ's; GGUF's are called as its
    # block types, "Q4_K".
    checkpoint_format: str
    bits: int
    group_size: int  # inputs that share a scale; -1 is the whole input dimension

    def num_groups(self, in_features: int) -> int:
        """Count the groups of a layer, a partial last one included."""
        return 1 if self.group_size == -1 else -(-in_features // self.group_size)
