"""The engine's own decoder layers, one for each known family, put in place of Transformers'.

They see weights only through `engine.layers.weights.LinearWeight` and attention only through
`engine.attention.interface.AttentionStep`. Families that are not known here keep Transformers'
layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.layers import llama

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.layers.llama import LlamaDecoder


def fuse_layers(
    model: PreTrainedModel, max_model_len: int, *, is_batch_invariant: bool
) -> LlamaDecoder | None:
    """Replace a known family's layers in the model; None, and nothing done, for any other."""
    if not llama.is_known(model):
        return None
    return llama.LlamaDecoder(model, max_model_len, is_batch_invariant=is_batch_invariant)
