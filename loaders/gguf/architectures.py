"""The model families whose GGUF files are read: how GGUF names their tensors, what it does to them.

Names on the left are GGUF's (`blk.3.attn_q.weight`), those on the right Transformers'
(`model.layers.3.self_attn.q_proj.weight`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loaders.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_LAYER = re.compile(r"blk\.(?P<layer>\d{1,6})\.(?P<part>\w+)(?:\.(?P<kind>[\w.]+))?")
_KINDS = ("weight", "bias")
_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_GATED = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture of GGUF's."""

    model_type: str  # Transformers' name of it
    parts: Mapping[str, str] = field(default_factory=lambda: {**_ATTENTION, **_GATED})
    # Rows of queries and keys that rotate together are neighbours in the file, half a head apart
    # in Transformers.
    rotates_neighbours: bool = False
    norm_offset: float = 0.0  # what GGUF adds to norms' weights, for the model adds it itself


ARCHITECTURES = {
    "llama": Architecture("llama", rotates_neighbours=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture(
        "qwen3",
        {
            **_ATTENTION,
            **_GATED,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
        },
    ),
    "starcoder2": Architecture(
        "starcoder2", {**_ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    ),
    "phi3": Architecture(
        "phi3",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "gemma": Architecture("gemma", norm_offset=1.0),
    "gemma2": Architecture(
        "gemma2",
        {
            **_ATTENTION,
            **_GATED,
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_offset=1.0,
    ),
}


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """Return the architecture that metadata names; UnsupportedModelError for one not read."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise CheckpointError("the GGUF file's metadata has no general.architecture")
    if metadata.get(f"{name}.expert_count", 0):
        raise UnsupportedModelError(
            f"the GGUF file is a mixture of experts ({name} with"
            f" {str(metadata[f'{name}.expert_count'])[:20]} of them), which is not served"
        )
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"the GGUF file is of the architecture {name[:80]!r}; read are"
            f" {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def model_name(architecture: Architecture, name: str) -> str | None:
    """Translate a tensor's name; None where such a model has no place for it."""
    outside, _, kind = name.rpartition(".")
    if outside in _OUTSIDE and kind in ("weight", "bias"):
        return f"{_OUTSIDE[outside]}.{kind}"
    match = _LAYER.fullmatch(name)
    if match is None or match["part"] not in architecture.parts or match["kind"] not in _KINDS:
        return None
    return f"model.layers.{int(match['layer'])}.{architecture.parts[match['part']]}.{match['kind']}"


def layer_of(name: str) -> int | None:
    """Give the number of the layer that a tensor belongs to; None for those of no layer."""
    match = _LAYER.fullmatch(name)
    return None if match is None else int(match["layer"])
