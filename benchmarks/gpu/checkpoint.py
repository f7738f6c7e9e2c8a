"""Writes a GPTQ checkpoint of any shape in seconds, from random numbers that are used again.

Speed does not depend on values, so nothing is quantised: codes are random words, scales are such
that activations stay near 1, and every tensor is a stretch of one of three pools.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.models import tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.gpu.limit import ModelShape

# Not a multiple of any tensor's row, so that rows differ.
POOL_BYTES = 2**25 + 2 * 7919
# Standard deviation of codes 0…15 around the zero point 8.
CODES_SPREAD = 4.6
# A zero point of 8 as GPTQ's first version stores it, less one: two to a byte.
STORED_ZEROS = 0x77
_DTYPE_BYTES = {"I32": 4, "F16": 2}
# Layers that read one input, and so have one order.
_READ_TOGETHER = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "qkv"),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "gate_up"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to write; a stretch of the pool that holds its kind of numbers."""

    name: str
    dtype: str  # safetensors' own names
    shape: tuple[int, ...]
    data: memoryview  # repeated as often as needed

    @property
    def num_bytes(self) -> int:
        """Return its size."""
        return int(np.prod(self.shape)) * _DTYPE_BYTES[self.dtype]


def write_checkpoint(
    folder: Path, shape: ModelShape, *, max_context: int, has_act_order: bool = False
) -> int:
    """Write weights, settings and a tokenizer of 512 pieces; return the weights' bytes.

    4 bits only: the pools hold codes and zero points of four. has_act_order: inputs belong to
    groups in a random order, which layers that read the same share.
    """
    if shape.bits != 4:
        raise ValueError(f"bits is {shape.bits}; only 4 can be written")
    folder.mkdir(parents=True, exist_ok=True)
    num_bytes = _write_tensors(folder / "model.safetensors", list(_tensors(shape, has_act_order)))
    config = _config(shape, max_context, has_act_order)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tiny_tokenizer().save_pretrained(folder)
    return num_bytes


def _tensors(shape: ModelShape, has_act_order: bool) -> Iterator[Tensor]:
    generator = np.random.default_rng(0)
    words = memoryview(generator.bytes(POOL_BYTES))
    normal = generator.standard_normal(POOL_BYTES // 2, dtype=np.float32)
    table = memoryview(normal.astype(np.float16).tobytes())
    head = memoryview((normal * shape.hidden_size**-0.5).astype(np.float16).tobytes())
    ones = memoryview(np.ones(shape.hidden_size, np.float16).tobytes())

    vocab = (shape.vocab_size, shape.hidden_size)
    yield Tensor("model.embed_tokens.weight", "F16", vocab, table)
    yield Tensor("lm_head.weight", "F16", vocab, head)
    yield Tensor("model.norm.weight", "F16", (shape.hidden_size,), ones)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Tensor(f"{prefix}.{norm}.weight", "F16", (shape.hidden_size,), ones)
        for name, (ins, outs) in shape.linear_shapes.items():
            start = int(generator.integers(POOL_BYTES // 8)) * 4
            order = np.arange(ins) // shape.group_size
            if has_act_order:  # of the layer's inputs, so the same for all that read them
                readers = _READ_TOGETHER.get(name, name)
                order = np.random.default_rng([layer, *readers.encode()]).permutation(order)
            yield from _packed(f"{prefix}.{name}", ins, outs, shape, words[start:], order)


def _packed(
    name: str, ins: int, outs: int, shape: ModelShape, words: memoryview, order: NDArray[np.int64]
) -> Iterator[Tensor]:
    groups, in_word = -(-ins // shape.group_size), 32 // shape.bits
    scale = np.float16(1 / (CODES_SPREAD * ins**0.5))
    yield Tensor(f"{name}.qweight", "I32", (ins // in_word, outs), words)
    zeros = memoryview(bytes([STORED_ZEROS]) * 4096)
    yield Tensor(f"{name}.qzeros", "I32", (groups, outs // in_word), zeros)
    scales = memoryview(np.full(4096, scale).tobytes())
    yield Tensor(f"{name}.scales", "F16", (groups, outs), scales)
    yield Tensor(f"{name}.g_idx", "I32", (ins,), memoryview(order.astype(np.int32).tobytes()))


def _write_tensors(file: Path, tensors: list[Tensor]) -> int:
    """Write safetensors: the header's length, the header, the data (the format's own document)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as output:
        output.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            left = tensor.num_bytes
            while left:
                left -= output.write(tensor.data[:left])
    return end


def _config(shape: ModelShape, max_context: int, has_act_order: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": max_context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "gptq",
            "bits": shape.bits,
            "group_size": shape.group_size,
            "desc_act": has_act_order,
            "sym": True,
            "damp_percent": 0.1,
            "true_sequential": True,
        },
    }
