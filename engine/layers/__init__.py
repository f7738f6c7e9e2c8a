"""The engine's own decoder layers, one for each known family, put in place of Transformers'.

They see weights only through `engine.layers.weights.LinearWeight` and attention only through
`engine.attention.interface.AttentionStep`. Families that are not known here keep Transformers'
layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.layers import llama
from engine.layers.gpu_llama import GpuLlamaDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.kernels.step_kernels import StepKernels


def fuse_layers(
    model: PreTrainedModel,
    max_model_len: int,
    *,
    is_batch_invariant: bool,
    kernels: StepKernels | None = None,
) -> llama.LlamaDecoder | GpuLlamaDecoder | None:
    """Replace a known family's layers in the model; None, and nothing done, for any other.

    kernels: of a GPU's path; None for the layers that the CPU runs. Batch-invariant answers take
    those everywhere: they go row by row, which no kernel would make faster.
    """
    if not llama.is_known(model):
        return None
    if kernels is not None and not is_batch_invariant:
        return GpuLlamaDecoder(model, max_model_len, kernels)
    return llama.LlamaDecoder(model, max_model_len, is_batch_invariant=is_batch_invariant)
