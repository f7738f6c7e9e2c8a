"""The engine's own decoder layers, one for each known family, put in place of Transformers'.

They see weights only through `engine.layers.weights.LinearWeight` and attention only through
`engine.attention.interface.AttentionStep`, or the step that kernels in C++ take. Families that are
not known here keep Transformers' layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.layers import llama
from engine.layers.gpu_llama import GpuLlamaDecoder
from engine.layers.native_llama import NativeLlamaDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.kernels.step_kernels import StepKernels


def fuse_layers(
    model: PreTrainedModel,
    max_model_len: int,
    *,
    is_batch_invariant: bool,
    kernels: StepKernels | None = None,
    is_native: bool = False,
) -> llama.LlamaDecoder | GpuLlamaDecoder | NativeLlamaDecoder | None:
    """Replace a known family's layers in the model; None, and nothing done, for any other.

    kernels: of a GPU's path; None for the layers that the CPU runs. Batch-invariant answers take
    those everywhere: they go row by row, which no kernel would make faster. is_native: whether the
    CPU's layers are those of kernels in C++, which must have been asked about the model before.
    """
    if not llama.is_known(model):
        return None
    if kernels is not None and not is_batch_invariant:
        return GpuLlamaDecoder(model, max_model_len, kernels)
    if is_native and not is_batch_invariant:
        return NativeLlamaDecoder(model, max_model_len)
    return llama.LlamaDecoder(model, max_model_len, is_batch_invariant=is_batch_invariant)
