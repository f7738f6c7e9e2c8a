"""How checkpoint formats store a linear layer: which tensors, of which shapes, and what they mean.

One module for each family of formats; `layout_of` finds the one of a layer. Whatever they read
ends up as codes, scales and zero points, so kernels know of none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import UnsupportedQuantizationError
from loaders.layouts.awq import AwqLayout, GemvFastLayout, GemvLayout
from loaders.layouts.compressed_tensors import PackQuantizedLayout
from loaders.layouts.gguf import BLOCK_TYPES, GgufLayout
from loaders.layouts.gptq import GptqLayout

if TYPE_CHECKING:
    from loaders.layouts.protocol import Layout
    from loaders.quantization import PackedFormat

# By `PackedFormat.checkpoint_format`.
LAYOUTS: dict[str, Layout] = {
    "gptq": GptqLayout("gptq"),
    "gptq_v2": GptqLayout("gptq_v2"),
    "gemm": AwqLayout(),
    "gemv": GemvLayout(),
    "gemv_fast": GemvFastLayout(),
    "pack-quantized": PackQuantizedLayout(has_zero_points=False),
    "pack-quantized, zero points": PackQuantizedLayout(has_zero_points=True),
    "pack-quantized, one scale": PackQuantizedLayout(has_zero_points=False, has_one_scale=True),
    **{name: GgufLayout(block_type) for name, block_type in BLOCK_TYPES.items()},
}
# How the names of the tensors end that every packed layer has.
PACKED_ENDINGS = tuple(sorted({f".{layout.marker}" for layout in LAYOUTS.values()}))


def layout_of(packed: PackedFormat) -> Layout:
    """Return how a format's layers are stored."""
    layout = LAYOUTS.get(packed.checkpoint_format)
    if layout is None:
        raise UnsupportedQuantizationError(
            f"the checkpoint format {packed.checkpoint_format!r} is not read; known are"
            f" {', '.join(sorted(LAYOUTS))}"
        )
    return layout
