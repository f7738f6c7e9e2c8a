"""Reads a quantised checkpoint in another way than the product, to hold the product to account.

Plain numpy: words are spread into single bits and the bits gathered into numbers, so that not even
an idea is shared with `loaders.quantization.packing`. Gives plain fp32 weights and a stock
Transformers model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Array = NDArray[Any]

# Field f of an AWQ word belongs to this column of its eight.
AWQ_COLUMN_OF_FIELD = [0, 2, 4, 6, 1, 3, 5, 7]

# Place p of 32 in AWQ's GEMV-fast words belongs to this input of the 32.
GEMV_FAST_INPUTS = [j + 8 * a for j in range(8) for a in range(4)]


def dequantized_model(folder: Path, settings: Mapping[str, Any] | None = None) -> Any:
    """Return a stock Transformers model in fp32 with the checkpoint's dequantised weights."""
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with no_init_weights():  # every weight is filled in below, or that is an error
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {
        name: torch.from_numpy(array) for name, array in dequantized_state(folder, settings).items()
    }
    # Old tools wrote zero biases for layers that have none in the model.
    state = {name: tensor for name, tensor in state.items() if not _is_stray(model, name, tensor)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def dequantized_state(folder: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Array]:
    """Return every weight of the checkpoint as plain fp32, [out, in] as `nn.Linear` holds it.

    settings: the quantisation's parameters; by default those of the folder's own files.
    """
    settings = settings if settings is not None else _read_settings(folder)
    stored = _read_tensors(folder)
    state: dict[str, Array] = {}
    for name, array in stored.items():
        module, _, last = name.rpartition(".")
        if last == "inv_freq":
            continue  # a table that the model computes itself
        if f"{module}.weight_packed" in stored:
            if last == "weight_packed":
                state[f"{module}.weight"] = _decompress(stored, module)
            elif last == "bias":
                state[name] = array
        elif f"{module}.qweight" not in stored:
            state[name] = array
        elif last == "qweight":
            state[f"{module}.weight"] = _dequantize(stored, module, settings)
        elif last == "bias":
            state[name] = array
    return state


def _dequantize(stored: Mapping[str, Array], module: str, settings: Mapping[str, Any]) -> Array:
    qweight, qzeros = stored[f"{module}.qweight"], stored[f"{module}.qzeros"]
    scales = stored[f"{module}.scales"]
    if settings.get("version") in ("gemv", "gemv_fast"):
        return _dequantize_gemv(qweight, qzeros, scales, settings)
    num_groups, out_features = scales.shape
    if settings.get("quant_method") == "awq":
        codes, zeros = awq_fields(qweight), awq_fields(qzeros)
    else:
        bits = qzeros.shape[1] * 32 // out_features
        codes = bit_stream(qweight.T, bits).T
        zeros = bit_stream(qzeros, bits)
        if settings.get("checkpoint_format", "gptq") == "gptq":
            zeros = (zeros + 1) % 2**bits
    g_idx = stored.get(f"{module}.g_idx")
    if g_idx is None:
        group_size = int(settings["group_size"])
        size = len(codes) if group_size == -1 else group_size
        g_idx = np.arange(len(codes)) // size
    if num_groups != g_idx.max() + 1:
        raise ValueError(f"{module}: {num_groups} groups of scales, g_idx up to {g_idx.max()}")
    weight = np.empty((out_features, len(codes)), dtype=np.float32)
    for group in range(num_groups):
        members = np.flatnonzero(g_idx == group)
        steps = codes[members].astype(np.float32) - zeros[group].astype(np.float32)
        weight[:, members] = (steps * scales[group]).T
    return weight


def _dequantize_gemv(
    qweight: Array, qzeros: Array, scales: Array, settings: Mapping[str, Any]
) -> Array:
    """Read AWQ's GEMV versions, whose surplus groups belong to no input."""
    if settings["version"] == "gemv":
        codes = bit_stream(qweight, 4)
        scales = scales.T
        offsets = -bit_stream(qzeros, 4).T * scales
    else:
        codes = gemv_fast_codes(qweight)
        offsets = qzeros
    size = codes.shape[1] if settings["group_size"] == -1 else settings["group_size"]
    group = np.arange(codes.shape[1]) // size
    return (codes * scales[group].T + offsets[group].T).astype(np.float32)


def gemv_fast_codes(words: Array) -> Array:
    """Read AWQ's GEMV-fast words [out / 4, in] as numbers [out, in]."""
    octets = np.ascontiguousarray(words).astype("<i2").view(np.uint8)
    nibbles = np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(words), -1, 4, 2, 32)
    codes = np.empty_like(nibbles)
    codes[..., GEMV_FAST_INPUTS] = nibbles
    return codes.transpose(0, 2, 1, 3, 4).reshape(len(words) * 4, -1).astype(np.int32)


def _decompress(stored: Mapping[str, Array], module: str) -> Array:
    """Read compressed-tensors' pack-quantized: signed codes, shifted up by half their range."""
    packed, scale = stored[f"{module}.weight_packed"], stored[f"{module}.weight_scale"]
    in_features = int(stored[f"{module}.weight_shape"][1])
    bits = packed.shape[1] * 32 // in_features
    codes = bit_stream(packed, bits) - 2 ** (bits - 1)
    scale = np.broadcast_to(scale.reshape(-1, scale.shape[-1]), (len(codes), scale.shape[-1]))
    zeros = np.zeros_like(scale)
    if (words := stored.get(f"{module}.weight_zero_point")) is not None:
        zeros = bit_stream(words.T, bits).T - 2 ** (bits - 1)
    group = stored.get(f"{module}.weight_g_idx")
    if group is None:
        group = np.arange(in_features) // (in_features // scale.shape[1])
    weight: Array = (codes - zeros[:, group]) * scale[:, group]
    return weight.astype(np.float32)


def bit_stream(words: Array, bits: int) -> Array:
    """Read each row of int32 words as one stream of bits, lowest first, and cut it into numbers."""
    octets = np.ascontiguousarray(words).astype("<i4").view(np.uint8)
    stream = np.unpackbits(octets, axis=1, bitorder="little")
    fields = stream.reshape(len(words), -1, bits).astype(np.int32)
    numbers: Array = fields @ (1 << np.arange(bits))
    return numbers


def awq_fields(words: Array) -> Array:
    """Read AWQ words [rows, n] as numbers [rows, 8 n] in the order of the columns."""
    fields = bit_stream(words, 4).reshape(len(words), -1, 8)
    columns = np.empty_like(fields)
    columns[:, :, AWQ_COLUMN_OF_FIELD] = fields
    return columns.reshape(len(words), -1)


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    own = folder / "quantize_config.json"
    if own.exists():
        settings |= json.loads(own.read_text())
    config = json.loads((folder / "config.json").read_text())
    settings |= config.get("quantization_config") or {}
    return settings


def _read_tensors(folder: Path) -> dict[str, Array]:
    """Read every shard: integers as they are, all floats as fp32."""
    stored: dict[str, Array] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                tensor = file.get_tensor(name)
                stored[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return stored


def _is_stray(model: Any, name: str, tensor: torch.Tensor) -> bool:
    return (
        name.endswith(".bias")
        and not tensor.any()
        and getattr(model.get_submodule(name.removesuffix(".bias")), "bias", None) is None
    )
