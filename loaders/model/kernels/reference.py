"""The reference: dequantise to float32 at every call, and multiply.

Slow, exact and on any device; every other backend is tested against it. Keeps only the
checkpoint's own tensors, so a model takes no more memory than its files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from loaders.model.kernels.protocol import FLOAT32_ROUNDOFF
from loaders.quantization import kernel_rules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel, LayerShape
    from loaders.quantization.packed_tensors import PackedTensors


class ReferenceKernel:
    """Dequantises per call; inputs stay in the checkpoint's order."""

    unit_roundoff = FLOAT32_ROUNDOFF
    num_invariant_rows = 1

    input_permutation: Tensor | None = None

    def __init__(self, packed: PackedTensors) -> None:
        self._packed = packed

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply in float32; x [rows, in] → [rows, out] in x's dtype."""
        return linear(x.float(), self.dequantize()).to(x.dtype)

    def dequantize(self) -> Tensor:
        """Return the weight as [out, in] float32."""
        return self._packed.dequantize()

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:  # noqa: ARG002
        """Never: the reference stays one layer, one multiplication."""
        return None


class ReferenceBackend:
    """Runs every format everywhere."""

    name = "reference"

    def refusal(self, shape: LayerShape) -> str | None:
        """Accept every layer."""
        return kernel_rules.refusal(self.name, shape.size, shape.facts)

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Keep the tensors as they are."""
        return ReferenceKernel(packed)
