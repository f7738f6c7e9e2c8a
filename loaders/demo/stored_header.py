"""The header of a branch's weights file, made without the weights.

So a branch that is not built can be planned for, tensor by tensor, as one that is.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loaders.demo.branches import DemoBranch

_BYTES = {"I32": 4, "F16": 2}  # the widest first, as safetensors lays tensors out
_ALIGNMENT = 8


def stored_header(model_config: Mapping[str, Any], branch: DemoBranch) -> bytes:
    """Return the first bytes of the file, up to where the tensors' data begins."""
    tensors = dict(_tensors(model_config, branch))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for dtype, width in _BYTES.items():
        for name in sorted(name for name, (stored, _) in tensors.items() if stored == dtype):
            start, shape = end, tensors[name][1]
            end += width * math.prod(shape)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _tensors(
    config: Mapping[str, Any], branch: DemoBranch
) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """Yield each tensor's name with its dtype and shape."""
    hidden = config["hidden_size"]
    yield "model.embed_tokens.weight", ("F16", [config["vocab_size"], hidden])
    yield "model.norm.weight", ("F16", [hidden])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", ("F16", [hidden])
        for name, (inputs, outputs) in _linears(config).items():
            for part, stored in _parts(inputs, outputs, branch).items():
                yield f"{prefix}.{name}.{part}", stored


def _linears(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return each linear layer's inputs and outputs."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv_heads = config["num_key_value_heads"] * config["head_dim"]
    return {
        "self_attn.q_proj": (hidden, heads),
        "self_attn.k_proj": (hidden, kv_heads),
        "self_attn.v_proj": (hidden, kv_heads),
        "self_attn.o_proj": (heads, hidden),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }


def _parts(inputs: int, outputs: int, branch: DemoBranch) -> dict[str, tuple[str, list[int]]]:
    """Return the tensors of one layer; words of 32 bits hold the codes."""
    groups = 1 if branch.group_size == -1 else inputs // branch.group_size
    packed_outputs = outputs * branch.bits // 32
    parts: dict[str, tuple[str, list[int]]] = {
        "qzeros": ("I32", [groups, packed_outputs]),
        "scales": ("F16", [groups, outputs]),
    }
    if branch.quant_method == "awq":
        return parts | {"qweight": ("I32", [inputs, packed_outputs])}
    return parts | {
        "qweight": ("I32", [inputs * branch.bits // 32, outputs]),
        "g_idx": ("I32", [inputs]),
    }
