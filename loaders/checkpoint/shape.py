"""How large a model is inside: what a config.json says of layers, heads and vocabulary.

Only the numbers that memory follows from, bounded, since they come from a file. What the weights
take is read from the tensors themselves, never from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.checkpoint.config_limits import LARGEST_SIZES
from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a key and a value cost: bytes a number, and bytes beside each head of numbers.
KV_TYPES = {"float32": (4, 0), "float16": (2, 0), "bfloat16": (2, 0), "fp8": (1, 2)}
# What families of before Llama call the same (GPT-2, GPT-BigCode, GPT-J, OPT).
_OLDER_NAMES = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions",),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_context: int  # tokens that the model was made for

    def kv_bytes_per_token(self, kv_dtype: str) -> int:
        """Memory of one token's keys and values, all layers together; fp8 with its scales."""
        number, scale = KV_TYPES[kv_dtype]
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * number + scale)


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read the sizes from a parsed config.json.

    Raises CheckpointError where one is missing or makes no sense.
    """
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text}
    hidden = _size(config, "hidden_size")
    heads = _size(config, "num_attention_heads")
    return ModelShape(
        hidden_size=hidden,
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads", _kv_heads(config, heads)),
        head_dim=_size(config, "head_dim", max(1, hidden // heads)),
        intermediate_size=_size(config, "intermediate_size", 4 * hidden),
        vocab_size=_size(config, "vocab_size"),
        max_context=_size(config, "max_position_embeddings"),
    )


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    """Count the key-value heads where no number is given: one serves all queries, or each one."""
    return 1 if config.get("multi_query") is True else heads


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    named = (config.get(name) for name in (key, *_OLDER_NAMES.get(key, ())))
    value = next((found for found in named if found is not None), None)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"config.json has no {key}, which a plan needs")
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 1 <= value <= LARGEST_SIZES[key]
    ):
        raise CheckpointError(
            f"config.json says {key}={str(value)[:40]}; a whole number from 1 to"
            f" {LARGEST_SIZES[key]} is expected"
        )
    return value
