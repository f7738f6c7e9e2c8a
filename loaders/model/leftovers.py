"""Tells what the tensors are that a model did not take: known left-overs, or reasons to refuse.

Known ones are tables that Transformers computes itself, what quantizers write for nothing, and
parts of a larger model that a language model does without. Which tensors are left over is found in
`loaders.model.coverage`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import torch
from torch import nn

from loaders.checkpoint.unused_layers import PREDICTOR_KEYS
from loaders.errors import TensorError
from loaders.model.packed_linear import packed_layers
from loaders.model.tensor_copies import is_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.checkpoint.files import TensorInfo

log = structlog.get_logger(__name__)

HEAD_COPIES = "copies of the embedding"
ROTARY_TABLE = "rotary_emb.inv_freq"
_FLOATS = ("F64", "F32", "F16", "BF16")
_ROTARY_TABLES = (ROTARY_TABLE, "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_MASKS = (".attn.bias", ".attention.bias", ".attn.attention.bias", ".causal_mask")
_CACHE_SCALE = re.compile(
    r"\.(?:self_attn|attn|attention)(?:\.attn)?\.(?:[kvq]|kv|qkv|prob|prob_output)_scale"
    r"|\.(?:k|v|qkv)_proj\.(?:k|v|kv|output)_scale"
)
_MAX_SCALES = 65_536  # one for each head at most, so far fewer; weights are larger
_PREDICTORS = re.compile(r"(?:model\.)?(?:mtp|nextn)\b")
_OTHER_SENSES = re.compile(
    r"(?:model\.)?(?:visual|vision_tower|vision_model|vision_embed_tokens|embed_vision|mm_projector"
    r"|multi_modal_projector|image_newline|audio_tower|audio_model|embed_audio|talker|token2wav"
    r"|code2wav)\b"
)
_SENSE_CONFIGS = ("vision_config", "audio_config", "visual")
# What a tensor without a place seems to be, by its name; the first that fits is said.
_SEEMINGLY = (
    (r"\.(?:weight_scale|weight_scale_inv|input_scale|scale_inv)$", "an FP8 weight's scale"),
    (r"lora_|\.lora\b", "a LoRA adapter's that was not merged into the weights"),
    (r"\.(?:qweight|qzeros|scales|g_idx|weight_\w+)$", "a part of a packed layer"),
    (r"scale|zero|absmax", "a part of an unknown packing"),
    (r"\.experts?\b|\.gate\.weight$", "a part of a mixture of experts"),
    (r"norm", "a norm"),
    (r"^(?:score|classifier|v_head|value_head)\b", "a head that scores"),
    (r"bias$", "a bias without a place"),
)


def log_left_over(kind: str, names: Sequence[str]) -> None:
    """Say that tensors of one known kind are not used."""
    log.info("tensors_left_over", kind=kind, count=len(names), first=names[0])


@dataclass(frozen=True, slots=True)
class LeftOver:
    """A tensor that the model did not take."""

    info: TensorInfo
    model: PreTrainedModel
    read: Callable[[], Tensor]  # its values
    is_tied: bool  # whether config.json says that the head is the embedding

    def kind(self) -> str:
        """Name the known kind of left-overs that it is one of. Raises TensorError."""
        for name, is_one in _KINDS.items():
            if is_one(self):
                return name
        raise TensorError(self._refusal())

    @property
    def is_dense_copy(self) -> bool:
        """Whether it is the plain weight of a layer that is packed."""
        module, _, key = self.info.name.rpartition(".")
        return key == "weight" and module in packed_layers(self.model)

    def _refusal(self) -> str:
        info, model_type = self.info, self.model.config.model_type
        what = next((what for p, what in _SEEMINGLY if re.search(p, info.name)), "a weight")
        advice = "config.json may be another model's, or the tensor another tool's"
        if self.is_dense_copy:
            what = "a dense copy of a packed layer"
            advice = "take one of the two out, the files do not say which one is right"
        if info.name.endswith(".bias"):
            advice = (
                "it holds other values than zero and would change every answer; keys of config.json"
                " such as attention_bias and mlp_bias say whether layers have one"
            )
        return (
            f"{info.name} ({info.dtype} {list(info.shape)}) has no place in a {model_type} model of"
            f" this config.json; it seems to be {what}: {advice}"
        )


def _is_rotary_table(tensor: LeftOver) -> bool:
    return tensor.info.name.endswith(_ROTARY_TABLES)


def _is_mask(tensor: LeftOver) -> bool:
    """Tell a causal mask, [.., n, n], and what its blocked places are filled with."""
    name, shape = tensor.info.name, tensor.info.shape
    if name.endswith(".masked_bias"):
        return math.prod(shape) == 1
    return name.endswith(_MASKS) and len(shape) > 2 and shape[-1] == shape[-2]


def _is_position_table(tensor: LeftOver) -> bool:
    return tensor.info.name.endswith("position_ids") and tensor.info.dtype not in _FLOATS


def _is_cache_scale(tensor: LeftOver) -> bool:
    info = tensor.info
    named = _CACHE_SCALE.search(info.name) is not None
    return named and info.dtype in _FLOATS and math.prod(info.shape) <= _MAX_SCALES


def _is_zero_bias(tensor: LeftOver) -> bool:
    """Tell a bias that adds nothing, as AutoGPTQ writes for layers that have none."""
    info = tensor.info
    named = info.name.endswith(".bias") and len(info.shape) == 1 and info.dtype in _FLOATS
    return named and not bool(tensor.read().any())


def _is_order_as_it_is(tensor: LeftOver) -> bool:
    """Tell a group index that leaves every input where it is: whole groups, one after another."""
    if not tensor.info.name.endswith("g_idx") or len(tensor.info.shape) != 1:
        return False
    groups = tensor.read().long()
    size = int((groups == groups[0]).sum()) if len(groups) else 1
    return bool((groups == torch.arange(len(groups)) // size).all()) or not bool(groups.any())


def _is_copy_of_embedding(tensor: LeftOver) -> bool:
    """Tell a dense head beside a packed one, where both are to be the embedding."""
    head: object = tensor.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    table = tensor.model.get_input_embeddings()
    if not (tensor.is_tied and tensor.is_dense_copy and isinstance(table, nn.Embedding)):
        return False
    module = tensor.model.get_submodule(tensor.info.name.rpartition(".")[0])
    return module is head and is_copy(tensor.read(), table.weight)


def _is_predictor(tensor: LeftOver) -> bool:
    """Tell a part that predicts further tokens ahead, where the model is known to have had one."""
    config = tensor.model.config.get_text_config()
    has_one = any(getattr(config, key, None) for key in PREDICTOR_KEYS)
    return _is_part(tensor, _PREDICTORS, has_one=has_one)


def _is_of_other_senses(tensor: LeftOver) -> bool:
    has_one = any(getattr(tensor.model.config, key, None) for key in _SENSE_CONFIGS)
    return _is_part(tensor, _OTHER_SENSES, has_one=has_one)


def _is_part(tensor: LeftOver, pattern: re.Pattern[str], *, has_one: bool) -> bool:
    """Tell a part of a larger model: by config.json, or because Transformers' class knows it."""
    name = tensor.info.name
    known = tensor.model._keys_to_ignore_on_load_unexpected or ()
    is_known = has_one or any(re.search(part, name) for part in known)
    return is_known and pattern.match(name) is not None


_KINDS: dict[str, Callable[[LeftOver], bool]] = {
    "rotary tables": _is_rotary_table,
    "causal masks": _is_mask,
    "position tables": _is_position_table,
    "KV-cache scales": _is_cache_scale,
    "all-zero biases": _is_zero_bias,
    "group indices in order": _is_order_as_it_is,
    HEAD_COPIES: _is_copy_of_embedding,
    "multi-token prediction": _is_predictor,
    "parts for images and sound": _is_of_other_senses,
}
