"""How one linear layer is packed: what settings tell, what layouts read and what kernels accept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QuantMethod = Literal["gptq", "awq", "compressed-tensors", "gguf"]
# GGUF's block types: bits of a code, weights that share a scale.
GGUF_GROUPS = {
    "Q4_0": (4, 32), "Q4_1": (4, 32), "Q5_0": (5, 32), "Q5_1": (5, 32), "Q8_0": (8, 32),
    "Q2_K": (2, 16), "Q3_K": (3, 16), "Q4_K": (4, 32), "Q5_K": (5, 32), "Q6_K": (6, 16),
}  # fmt: skip


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
