"""How checkpoint formats store a linear layer: which tensors, of which shapes, and what they mean.

One module for each family of formats; `layout_of` finds the one of a layer. Whatever they read
ends up as codes, scales and zero points, so kernels know of none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import UnsupportedQuantizationError
from loaders.quantization.layouts.awq import AwqLayout, GemvFastLayout, GemvLayout
from loaders.quantization.layouts.compressed_tensors import PackQuantized, PackQuantizedLayout
from loaders.quantization.layouts.gguf import BLOCK_TYPES, GgufLayout
from loaders.quantization.layouts.gptq import GptqLayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from loaders.quantization.layouts.protocol import Layout
    from loaders.quantization.packed_format import PackedFormat

# What makes a format's layout, by `PackedFormat.checkpoint_format`.
LAYOUTS: dict[str, Callable[[PackedFormat], Layout]] = {
    "gptq": GptqLayout,
    "gptq_v2": GptqLayout,
    "gemm": AwqLayout,
    "gemv": GemvLayout,
    "gemv_fast": GemvFastLayout,
    **dict.fromkeys(PackQuantized, PackQuantizedLayout),
    **dict.fromkeys(BLOCK_TYPES, GgufLayout),
}
# How the names of the tensors end that every packed layer has.
PACKED_ENDINGS = (
    f".{GptqLayout.marker}",  # AWQ's, too
    f".{PackQuantizedLayout.marker}",
    f".{GgufLayout.marker}",
)


def layout_of(packed: PackedFormat) -> Layout:
    """Return how a format's layers are stored."""
    make = LAYOUTS.get(packed.checkpoint_format)
    if make is None:
        raise UnsupportedQuantizationError(
            f"the checkpoint format {packed.checkpoint_format!r} is not read; known are"
            f" {', '.join(sorted(LAYOUTS))}"
        )
    return make(packed)
