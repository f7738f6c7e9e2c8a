"""Writes GGUF models that published files would hold: every block type, version and way to split.

The rounding is plain: tests compare what is loaded with what the file says, not with the model it
came from. What a file says is told by `gguf.quants.dequantize`, which shares nothing with the
product, and tensors are named by the gguf package's own table.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

Array = NDArray[Any]

ALIGNMENT = 32
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "starcoder2": gguf.MODEL_ARCH.STARCODER2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
}
_SCALARS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


# Blocks


def encode(values: Array, dtype: str) -> Array:
    """Round rows [..., n] to a type's blocks: uint8 [..., bytes per row]."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "F32":
        return values.view(np.uint8)
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint8)
    if dtype == "BF16":
        return (torch.from_numpy(values).bfloat16().view(torch.uint8)).numpy()
    size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[dtype]][0]
    blocks = _ENCODERS[dtype](values.reshape(-1, size))
    return np.concatenate(blocks, axis=1).reshape(*values.shape[:-1], -1)


def decode(stored: Array, dtype: str) -> Array:
    """Tell by the gguf package what stored rows mean: float32."""
    return gguf.quants.dequantize(stored, GGMLQuantizationType[dtype])


def _halves(values: Array) -> tuple[Array, Array]:
    """Round [blocks] to halves: their bytes [blocks, 2], and the values [blocks, 1] they became."""
    rounded = values.astype(np.float16)
    return rounded[:, None].view(np.uint8), rounded.astype(np.float32)[:, None]


def _divide(values: Array, by: Array) -> Array:
    return np.divide(values, by, out=np.zeros_like(values), where=by != 0)


def _pack(codes: Array, width: int, size: int) -> Array:
    """Pack codes [blocks, n]: runs of `size`, the first in the lowest bits of as many bytes."""
    fields = codes.astype(np.uint8).reshape(len(codes), -1, 8 // width, size)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(fields << shifts, axis=2).reshape(len(codes), -1)


def _high_bits(codes: Array) -> Array:
    return np.packbits(codes >> 4 & 1, axis=1, bitorder="little")


def _q8_0(x: Array) -> list[Array]:
    d, scale = _halves(np.abs(x).max(1) / 127)
    return [d, _divide(x, scale).round().clip(-127, 127).astype(np.int8).view(np.uint8)]


def _symmetric(x: Array, middle: int) -> tuple[Array, Array]:
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]
    d, scale = _halves(largest / -middle)
    codes = (_divide(x, scale).round() + middle).clip(0, 2 * middle - 1)
    return d, codes.astype(np.uint8)


def _with_minimum(x: Array, highest: int) -> tuple[Array, Array, Array]:
    m, minimum = _halves(x.min(1))
    d, scale = _halves((x.max(1) - x.min(1)) / highest)
    return d, m, _divide(x - minimum, scale).round().clip(0, highest).astype(np.uint8)


def _q4_0(x: Array) -> list[Array]:
    d, codes = _symmetric(x, 8)
    return [d, _pack(codes, 4, 16)]


def _q4_1(x: Array) -> list[Array]:
    d, m, codes = _with_minimum(x, 15)
    return [d, m, _pack(codes, 4, 16)]


def _q5_0(x: Array) -> list[Array]:
    d, codes = _symmetric(x, 16)
    return [d, _high_bits(codes), _pack(codes & 15, 4, 16)]


def _q5_1(x: Array) -> list[Array]:
    d, m, codes = _with_minimum(x, 31)
    return [d, m, _high_bits(codes), _pack(codes & 15, 4, 16)]


def _k_minimum(
    x: Array, group: int, highest: int, most: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Round groups with scales and minima of few bits: d, dmin, scales, minima, codes."""
    groups = x.reshape(len(x), -1, group)
    lowest = np.minimum(groups.min(2), 0)
    spans = (groups.max(2) - lowest) / highest
    d, scale = _halves(spans.max(1) / most)
    dmin, step = _halves(-lowest.min(1) / most)
    scales = _divide(spans, scale).round().clip(0, most)
    minima = _divide(-lowest, step).round().clip(0, most)
    offset = (minima * step)[:, :, None]
    codes = _divide(groups + offset, np.broadcast_to((scales * scale)[:, :, None], groups.shape))
    codes = codes.round().clip(0, highest).reshape(len(x), -1)
    return d, dmin, scales.astype(np.uint8), minima.astype(np.uint8), codes.astype(np.uint8)


def _k_signed(x: Array, middle: int, most: int) -> tuple[Array, Array, Array]:
    """Round groups of 16 with signed scales: d, scales, codes."""
    groups = x.reshape(len(x), 16, 16)
    at = np.abs(groups).argmax(2)[:, :, None]
    steps = np.take_along_axis(groups, at, 2)[:, :, 0] / -middle
    d, scale = _halves(np.abs(steps).max(1) / most)
    scales = _divide(steps, scale).round().clip(-most - 1, most)
    by = np.broadcast_to((scales * scale)[:, :, None], groups.shape)
    codes = (_divide(groups, by).round() + middle).clip(0, 2 * middle - 1)
    return d, scales.astype(np.int8), codes.reshape(len(x), -1).astype(np.uint8)


def _six_bits(scales: Array, minima: Array) -> Array:
    low, high = (scales[:, :4], minima[:, :4]), (scales[:, 4:], minima[:, 4:])
    return np.concatenate(
        [
            low[0] | high[0] >> 4 << 6,
            low[1] | high[1] >> 4 << 6,
            (high[0] & 15) | (high[1] & 15) << 4,
        ],
        axis=1,
    )


def _q2_k(x: Array) -> list[Array]:
    d, dmin, scales, minima, codes = _k_minimum(x, 16, 3, 15)
    return [scales | minima << 4, _pack(codes, 2, 32), d, dmin]


def _q3_k(x: Array) -> list[Array]:
    d, signed, codes = _k_signed(x, 4, 31)
    scales = (signed + 32).astype(np.uint8)
    packed = [_pack(scales & 15, 4, 8), _pack(scales >> 4, 2, 4)]
    return [_pack(codes >> 2, 1, 32), _pack(codes & 3, 2, 32), *packed, d]


def _q4_k(x: Array) -> list[Array]:
    d, dmin, scales, minima, codes = _k_minimum(x, 32, 15, 63)
    return [d, dmin, _six_bits(scales, minima), _pack(codes, 4, 32)]


def _q5_k(x: Array) -> list[Array]:
    d, dmin, scales, minima, codes = _k_minimum(x, 32, 31, 63)
    packed = [_pack(codes >> 4, 1, 32), _pack(codes & 15, 4, 32)]
    return [d, dmin, _six_bits(scales, minima), *packed]


def _q6_k(x: Array) -> list[Array]:
    d, scales, codes = _k_signed(x, 32, 127)
    return [_pack(codes & 15, 4, 64), _pack(codes >> 4, 2, 32), scales.view(np.uint8), d]


_ENCODERS: dict[str, Callable[[Array], list[Array]]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
BLOCK_TYPES = tuple(_ENCODERS)


# Files


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Array]],
    *,
    version: int = 3,
) -> Path:
    """Write a GGUF file; tensors: name → (type, values)."""
    count = "<I" if version == 1 else "<Q"

    def text(value: str) -> bytes:
        return struct.pack(count, len(value.encode())) + value.encode()

    def scalar(value: Any) -> tuple[int, bytes]:
        if isinstance(value, str):
            return 8, text(value)
        kind, code = _SCALARS[type(value)]
        return (
            (5, struct.pack("<i", value))
            if kind == 4 and value < 0
            else (
                kind,
                struct.pack(f"<{code}", value),
            )
        )

    def entry(value: Any) -> bytes:
        if not isinstance(value, list | tuple):
            kind, data = scalar(value)
            return struct.pack("<I", kind) + data
        items = [scalar(item) for item in value]
        kind = items[0][0] if items else 4
        head = struct.pack("<II", 9, kind) + struct.pack(count, len(items))
        return head + b"".join(data for _, data in items)

    head = b"GGUF" + struct.pack("<I", version)
    head += struct.pack(count, len(tensors)) + struct.pack(count, len(metadata))
    head += b"".join(text(key) + entry(value) for key, value in metadata.items())
    data = bytearray()
    for name, (dtype, values) in tensors.items():
        dims = b"".join(struct.pack(count, size) for size in reversed(values.shape))
        kind = GGMLQuantizationType[dtype].value
        head += text(name) + struct.pack("<I", values.ndim) + dims
        head += struct.pack("<IQ", kind, len(data))
        data += encode(values, dtype).tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
    return path


def cut_file(path: Path, *positions: int) -> list[Path]:
    """Cut a file into `….gguf-split-a`, `-split-b`, … and remove it."""
    data = path.read_bytes()
    borders = [0, *positions, len(data)]
    pieces = [
        path.with_name(f"{path.name}-split-{chr(ord('a') + number)}")
        for number in range(len(borders) - 1)
    ]
    for piece, start, end in zip(pieces, borders, borders[1:], strict=False):
        piece.write_bytes(data[start:end])
    path.unlink()
    return pieces


def write_set(
    folder: Path,
    stem: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Array]],
    count: int,
) -> list[Path]:
    """Write `stem-00001-of-0000N.gguf`, …; the first file alone has all metadata."""
    names = list(tensors)
    paths = []
    for number in range(count):
        own = {
            **(metadata if number == 0 else {}),
            "split.no": number,
            "split.count": count,
            "split.tensors.count": len(names),
        }
        part = {name: tensors[name] for name in names[number::count]}
        path = folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf"
        paths.append(write_gguf(path, own, part))
    return paths


# Models


def model_metadata(model: Any, tokenizer: PreTrainedTokenizerFast | None = None) -> dict[str, Any]:
    """Say of a model what llama.cpp's converters would."""
    config = model.config
    arch = "llama" if config.model_type == "mistral" else config.model_type
    eps = getattr(config, "rms_norm_eps", None)
    rope = config.rope_parameters
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None and head_dim * config.num_attention_heads != config.hidden_size:
        own |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if arch == "llama":
        own["rope.dimension_count"] = config.hidden_size // config.num_attention_heads
    if eps is None:
        own["attention.layer_norm_epsilon"] = config.norm_epsilon
    else:
        own["attention.layer_norm_rms_epsilon"] = eps
    if rope["rope_type"] in ("linear", "yarn"):
        own |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        own["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if getattr(config, "sliding_window", None):
        own["attention.sliding_window"] = config.sliding_window
    if arch == "gemma2":
        own["attn_logit_softcapping"] = config.attn_logit_softcapping
        own["final_logit_softcapping"] = config.final_logit_softcapping
    metadata = {"general.architecture": arch, **{f"{arch}.{key}": own[key] for key in own}}
    return metadata if tokenizer is None else {**metadata, **tokenizer_metadata(tokenizer)}


def tokenizer_metadata(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Say of a byte-level tokenizer what llama.cpp's converters would."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    pieces = sorted(ids, key=ids.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tuple(pieces),
        "tokenizer.ggml.token_type": tuple(3 if ids[p] in special else 1 for p in pieces),
        "tokenizer.ggml.merges": tuple(merges),
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def model_tensors(model: Any, type_of: Callable[[str], str]) -> dict[str, tuple[str, Array]]:
    """List a model's tensors as a GGUF file holds them; type_of: by GGUF's name, of matrices."""
    config = model.config
    table = gguf.get_tensor_name_map(_ARCHITECTURES[config.model_type], config.num_hidden_layers)
    tensors = {}
    for name, parameter in _state(model).items():
        named = table.get_name(name, try_suffixes=(".weight", ".bias"))
        values = parameter.float().numpy()
        if name.endswith("norm.weight") and config.model_type.startswith("gemma"):
            values = values + 1
        if config.model_type in ("llama", "mistral"):
            values = _pairs_from_halves(name, values, config)
        tensors[named] = (type_of(named) if values.ndim > 1 else "F32", values)
    return tensors


def _pairs_from_halves(name: str, values: Array, config: Any) -> Array:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return values
    halves = values.reshape(count, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _state(model: Any) -> dict[str, torch.Tensor]:
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def as_stored(model: Any, type_of: Callable[[str], str]) -> Any:
    """Give a model, float32, of the weights that the file holds, by the gguf package.

    An embedding of blocks is rounded to half precision, as the product keeps it.
    """
    config = model.config
    table = gguf.get_tensor_name_map(_ARCHITECTURES[config.model_type], config.num_hidden_layers)
    state = {}
    for name, parameter in _state(model).items():
        values = parameter.float().numpy()
        if values.ndim > 1:
            dtype = type_of(table.get_name(name, try_suffixes=(".weight",)))
            values = decode(encode(values, dtype), dtype)
        state[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    config = type(config).from_dict({**config.to_dict(), "tie_word_embeddings": False})
    made = type(model)(config).float()
    if type_of("token_embd.weight") in BLOCK_TYPES:
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].half().float()
    add_biases(made, [name.removesuffix(".bias") for name in state if name.endswith(".bias")])
    made.load_state_dict({**state, "lm_head.weight": head})
    return made.requires_grad_(False).eval()


def add_biases(model: Any, layers: Iterable[str]) -> None:
    """Give linear layers random biases where they have none, though their class may know none."""
    generator = torch.Generator().manual_seed(7)
    for name in layers:
        layer = model.get_submodule(name)
        if isinstance(layer, torch.nn.Linear) and layer.bias is None:
            values = torch.randn(layer.out_features, generator=generator) / 2
            layer.bias = torch.nn.Parameter(values)


def mixed(base: str, better: str, parts: Sequence[str], head: str = "Q6_K") -> Callable[[str], str]:
    """Make a mix such as Q4_K_M's: `parts` of the layers in the better type, and the head's own."""

    def type_of(name: str) -> str:
        if name == "output.weight":
            return head
        return better if any(f".{part}." in name for part in parts) else base

    return type_of
