"""How fast a quantised decoder could be at most: by its bytes, and by its operations.

A step reads every weight once and each sequence's keys and values, and multiplies every weight by
every row. Norms, attention's own arithmetic and the embedding's few rows are left out, so no
engine reaches the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

HALF_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Llama's sizes; its linear layers are packed, its head and tables are halves."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    bits: int
    group_size: int  # inputs that share a scale; symmetric, so no zero points are counted

    @property
    def head_dim(self) -> int:
        """How wide each head is."""
        return self.hidden_size // self.num_heads

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of one layer's packed products, by their usual names."""
        hidden, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden, kv),
            "self_attn.v_proj": (hidden, kv),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (hidden, self.intermediate_size),
            "mlp.up_proj": (hidden, self.intermediate_size),
            "mlp.down_proj": (self.intermediate_size, hidden),
        }

    @property
    def num_packed(self) -> int:
        """How many weights are packed."""
        return self.num_layers * sum(ins * outs for ins, outs in self.linear_shapes.values())

    @property
    def num_multiplied(self) -> int:
        """How many weights each row is multiplied by, the head's among them."""
        return self.num_packed + self.vocab_size * self.hidden_size

    @property
    def bytes_read(self) -> float:
        """Bytes of weights that a step reads."""
        packed = self.num_packed * (self.bits + 8 * HALF_BYTES / self.group_size) / 8
        return packed + self.vocab_size * self.hidden_size * HALF_BYTES

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that each token of context leaves, in halves."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * HALF_BYTES


CODELLAMA_7B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=32,
    intermediate_size=11008,
    vocab_size=32016,
    bits=4,
    group_size=128,
)
CODELLAMA_13B = replace(
    CODELLAMA_7B, num_layers=40, hidden_size=5120, num_heads=40, num_kv_heads=40,
    intermediate_size=13824,
)  # fmt: skip
CODELLAMA_34B = replace(
    CODELLAMA_7B, num_layers=48, hidden_size=8192, num_heads=64, num_kv_heads=8,
    intermediate_size=22016, vocab_size=32000,
)  # fmt: skip
CODELLAMA_70B = replace(CODELLAMA_34B, num_layers=80, intermediate_size=28672, vocab_size=32016)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device does at most."""

    bytes_per_s: float  # of a copy, read and written ones counted
    flop_per_s: float  # of a product of halves


def decode_limit(shape: ModelShape, batch: int, context: float, ceilings: Ceilings) -> float:
    """Return tokens a second of so many sequences, each with so many tokens before it."""
    weights_s = max(
        shape.bytes_read / ceilings.bytes_per_s,
        2 * shape.num_multiplied * batch / ceilings.flop_per_s,
    )
    kv_s = shape.kv_bytes * context * batch / ceilings.bytes_per_s
    return batch / (weights_s + kv_s)


def prefill_limit(shape: ModelShape, num_tokens: int, ceilings: Ceilings) -> float:
    """Return prompt tokens a second of one prompt; only its last row meets the head."""
    seconds = max(
        shape.bytes_read / ceilings.bytes_per_s,
        2 * shape.num_packed * num_tokens / ceilings.flop_per_s,
    )
    return num_tokens / seconds
