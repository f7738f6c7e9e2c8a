"""Repositories in the shape of published ones: real shapes and settings, no weights.

Every large file is its header and then nothing: a `SparseFile` that the hub of the tests serves in
ranges, or a file with a hole on disk. So a table of a model card can be reproduced to the last
gigabyte in a few megabytes. The numbers are the cards' own; the texts are ours.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from loaders.cache import repository_folder
from loaders.checkpoint.files import GGML_BLOCKS
from tests.hub_server import HubRepository, SparseFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from tests.hub_server import Content

GPTQ_7B = "TheBloke/CodeLlama-7B-Instruct-GPTQ"
AWQ_70B = "TheBloke/CodeLlama-70B-Instruct-AWQ"
FP16_34B = "TheBloke/CodeLlama-34B-fp16"
GGUF_13B = "TheBloke/CodeLlama-13B-Python-GGUF"
_MAX_SHARD_BYTES = 10_000_000_000
_DTYPE_BYTES = {"F16": 2, "I32": 4, "F32": 4}

Tensor = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


@dataclass(frozen=True)
class LlamaShape:
    """What of a Llama model decides its size."""

    hidden: int
    layers: int
    intermediate: int
    vocab: int
    kv_heads: int
    heads: int
    max_positions: int = 16384
    head_dim: int = 128

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Every linear layer of one block: name → (inputs, outputs)."""
        kv = self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.hidden, kv),
            "self_attn.v_proj": (self.hidden, kv),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    def config(self, **more: Any) -> dict[str, Any]:
        """Return its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_positions,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vocab_size": self.vocab,
            **more,
        }


CODELLAMA_7B = LlamaShape(4096, 32, 11008, 32016, kv_heads=32, heads=32)
CODELLAMA_13B = LlamaShape(5120, 40, 13824, 32000, kv_heads=40, heads=40)
CODELLAMA_34B = LlamaShape(8192, 48, 22016, 32000, kv_heads=8, heads=64)
CODELLAMA_70B = LlamaShape(8192, 80, 28672, 32016, kv_heads=8, heads=64, max_positions=4096)


@dataclass(frozen=True)
class GptqBranch:
    """One row of the 7B card's table."""

    name: str
    bits: int
    group_size: int
    desc_act: bool
    gigabytes: str  # as the model card prints it

    @property
    def settings(self) -> dict[str, Any]:
        """Return its quantize_config.json."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "damp_percent": 0.1,
            "desc_act": self.desc_act,
            "sym": True,
            "true_sequential": True,
            "model_name_or_path": None,
            "model_file_base_name": "model",
        }


GPTQ_BRANCHES = (
    GptqBranch("main", 4, 128, False, "3.90"),
    GptqBranch("gptq-4bit-32g-actorder_True", 4, 32, True, "4.28"),
    GptqBranch("gptq-4bit-64g-actorder_True", 4, 64, True, "4.02"),
    GptqBranch("gptq-4bit-128g-actorder_True", 4, 128, True, "3.90"),
    GptqBranch("gptq-8bit--1g-actorder_True", 8, -1, True, "7.01"),
    GptqBranch("gptq-8bit-128g-actorder_True", 8, 128, True, "7.16"),
)

# The 13B card's files and sizes.
GGUF_FILES = {
    "Q2_K": "5.43", "Q3_K_S": "5.66", "Q3_K_M": "6.34", "Q3_K_L": "6.93", "Q4_K_S": "7.41",
    "Q4_K_M": "7.87", "Q5_K_S": "8.97", "Q5_K_M": "9.23", "Q6_K": "10.68", "Q8_0": "13.79",
}  # fmt: skip
_GGUF_FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
}  # fmt: skip
_GGML_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
}  # fmt: skip


@cache
def gptq_repository() -> HubRepository:
    """CodeLlama 7B Instruct, GPTQ, with the six branches of its card."""
    return HubRepository({b.name: gptq_files(CODELLAMA_7B, b) for b in GPTQ_BRANCHES})


@cache
def awq_repository() -> HubRepository:
    """CodeLlama 70B Instruct, AWQ 4-bit, group 128, in shards."""
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    config = CODELLAMA_70B.config(quantization_config={**settings, "version": "gemm"})
    files = {
        **sharded(awq_tensors(CODELLAMA_70B, group_size=128)),
        "config.json": _json(config),
        "quant_config.json": _json(
            {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
        ),
        "README.md": awq_card().encode(),
    }
    return HubRepository({"main": files})


@cache
def dense_repository() -> HubRepository:
    """CodeLlama 34B in fp16, in shards; its card asks for remote code, its config names some."""
    auto_map = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    files = {
        **sharded(dense_tensors(CODELLAMA_34B)),
        "config.json": _json(CODELLAMA_34B.config(auto_map=auto_map)),
        "README.md": b"---\nlicense: llama2\n---\n# CodeLlama 34B\n\n## Prompt template: TBC\n",
    }
    return HubRepository({"main": files})


@cache
def gguf_repository() -> HubRepository:
    """CodeLlama 13B Python, one GGUF file (version 1) for each quantisation of its card."""
    files: dict[str, Content] = {
        f"codellama-13b-python.{kind}.gguf": gguf_file(CODELLAMA_13B, kind, version=1)
        for kind in GGUF_FILES
    }
    return HubRepository({"main": {**files, "README.md": gguf_card().encode()}})


def gptq_files(shape: LlamaShape, branch: GptqBranch) -> dict[str, Content]:
    """Everything that one branch of a GPTQ repository holds, but the tokenizer."""
    config = shape.config(quantization_config={**branch.settings, "quant_method": "gptq"})
    tensors = gptq_tensors(shape, bits=branch.bits, group_size=branch.group_size)
    return {
        "model.safetensors": header_only(tensors),
        "config.json": _json(config),
        "quantize_config.json": _json(branch.settings),
        "README.md": gptq_card().encode(),
    }


def gptq_tensors(shape: LlamaShape, *, bits: int, group_size: int) -> list[Tensor]:
    """Packed along the input, with g_idx."""

    def packed(name: str, inputs: int, outputs: int) -> list[Tensor]:
        groups = 1 if group_size == -1 else -(-inputs // group_size)
        return [
            (f"{name}.g_idx", "I32", (inputs,)),
            (f"{name}.qweight", "I32", (inputs * bits // 32, outputs)),
            (f"{name}.qzeros", "I32", (groups, outputs * bits // 32)),
            (f"{name}.scales", "F16", (groups, outputs)),
        ]

    return _tensors(shape, packed)


def awq_tensors(shape: LlamaShape, *, group_size: int) -> list[Tensor]:
    """Packed along the output, four bits."""

    def packed(name: str, inputs: int, outputs: int) -> list[Tensor]:
        return [
            (f"{name}.qweight", "I32", (inputs, outputs // 8)),
            (f"{name}.qzeros", "I32", (inputs // group_size, outputs // 8)),
            (f"{name}.scales", "F16", (inputs // group_size, outputs)),
        ]

    return _tensors(shape, packed)


def dense_tensors(shape: LlamaShape) -> list[Tensor]:
    """Weights as they were trained, in fp16."""
    return _tensors(shape, lambda name, i, o: [(f"{name}.weight", "F16", (o, i))])


def _tensors(shape: LlamaShape, linear: Callable[[str, int, int], list[Tensor]]) -> list[Tensor]:
    tensors: list[Tensor] = [
        ("model.embed_tokens.weight", "F16", (shape.vocab, shape.hidden)),
        ("lm_head.weight", "F16", (shape.vocab, shape.hidden)),
        ("model.norm.weight", "F16", (shape.hidden,)),
    ]
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors += [
            (f"{prefix}.{norm}.weight", "F16", (shape.hidden,))
            for norm in ("input_layernorm", "post_attention_layernorm")
        ]
        for name, (inputs, outputs) in shape.linears.items():
            tensors += linear(f"{prefix}.{name}", inputs, outputs)
    return tensors


def header_only(tensors: Iterable[Tensor]) -> SparseFile:
    """Describe tensors in a safetensors header, with right offsets, and leave out their data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, dims in tensors:
        begin, end = end, end + _num_bytes(dtype, dims)
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return SparseFile(head, len(head) + end)


def sharded(tensors: list[Tensor]) -> dict[str, Content]:
    """Cut tensors into shards of at most 10 GB, with an index."""
    shards: list[list[Tensor]] = [[]]
    room = _MAX_SHARD_BYTES
    for tensor in tensors:
        size = _num_bytes(tensor[1], tensor[2])
        if size > room:
            shards.append([])
            room = _MAX_SHARD_BYTES
        shards[-1].append(tensor)
        room -= size
    names = [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    weight_map = {t[0]: name for name, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(_num_bytes(dtype, dims) for _, dtype, dims in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return {
        **{name: header_only(shard) for name, shard in zip(names, shards, strict=True)},
        "model.safetensors.index.json": _json(index),
    }


def _num_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    count = 1
    for size in dims:
        count *= size
    if dtype in GGML_BLOCKS:
        weights, size = GGML_BLOCKS[dtype]
        return count // weights * size
    return count * _DTYPE_BYTES[dtype]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode()


def gguf_tensors(shape: LlamaShape, kind: str) -> list[Tensor]:
    """List the tensors of one file in the mix of types that its name stands for.

    Shapes are PyTorch's. The mixes are those of llama.cpp in August 2023, and give
    the model card's sizes within 0.3 %.
    """
    kv = shape.kv_heads * shape.head_dim
    tensors: list[Tensor] = [
        ("token_embd.weight", _gguf_base(kind), (shape.vocab, shape.hidden)),
        ("output_norm.weight", "F32", (shape.hidden,)),
        ("output.weight", "Q8_0" if kind == "Q8_0" else "Q6_K", (shape.vocab, shape.hidden)),
    ]
    sizes = {
        "attn_q": (shape.hidden, shape.hidden),
        "attn_k": (kv, shape.hidden),
        "attn_v": (kv, shape.hidden),
        "attn_output": (shape.hidden, shape.hidden),
        "ffn_gate": (shape.intermediate, shape.hidden),
        "ffn_up": (shape.intermediate, shape.hidden),
        "ffn_down": (shape.hidden, shape.intermediate),
    }
    for layer in range(shape.layers):
        tensors += [
            (f"blk.{layer}.{norm}.weight", "F32", (shape.hidden,))
            for norm in ("attn_norm", "ffn_norm")
        ]
        for name, dims in sizes.items():
            dtype = _gguf_type(kind, name, layer, shape.layers)
            tensors.append((f"blk.{layer}.{name}.weight", dtype, dims))
    return tensors


def _gguf_base(kind: str) -> str:
    return kind[:4] if kind.endswith(("_S", "_M", "_L")) else kind


def _gguf_type(kind: str, name: str, layer: int, layers: int) -> str:
    """Name the type of one layer's tensor: some kinds give the sensitive ones more bits."""
    more_bits = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    sensitive = {"attn_v", "ffn_down"}
    if kind == "Q2_K" and name not in ("attn_q", "attn_k"):
        return "Q3_K"
    if kind == "Q3_K_M" and name in sensitive | {"attn_output"}:
        return "Q4_K"
    if kind == "Q3_K_L" and name in sensitive | {"attn_output"}:
        return "Q5_K"
    if kind in ("Q4_K_M", "Q5_K_M") and name in sensitive and more_bits:
        return "Q6_K"
    if kind == "Q4_K_S" and name in sensitive and layer < 4:
        return "Q5_K"
    return _gguf_base(kind)


def gguf_file(shape: LlamaShape, kind: str, *, version: int = 3) -> SparseFile:
    """Write one GGUF file: metadata, a vocabulary of the right length, tensor infos; no data."""
    count = "<I" if version == 1 else "<Q"
    tensors = gguf_tensors(shape, kind)
    values = [
        ("general.architecture", "llama"),
        ("general.name", "codellama"),
        ("llama.context_length", shape.max_positions),
        ("llama.embedding_length", shape.hidden),
        ("llama.block_count", shape.layers),
        ("llama.feed_forward_length", shape.intermediate),
        ("llama.rope.dimension_count", shape.head_dim),
        ("llama.attention.head_count", shape.heads),
        ("llama.attention.head_count_kv", shape.kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.freq_base", 1_000_000.0),
        ("general.file_type", _GGUF_FILE_TYPES[kind]),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.tokens", [f"piece{number}" for number in range(shape.vocab)]),
        ("tokenizer.ggml.bos_token_id", 1),
        ("general.quantization_version", 2),
    ]
    head = b"GGUF" + struct.pack("<I", version)
    head += struct.pack(count, len(tensors)) + struct.pack(count, len(values))
    head += b"".join(_gguf_text(key, count) + _gguf_value(value, count) for key, value in values)
    infos, end = [], 0
    for name, dtype, dims in tensors:
        info = _gguf_text(name, count) + struct.pack("<I", len(dims))
        info += b"".join(struct.pack(count, size) for size in reversed(dims))
        infos.append(info + struct.pack("<IQ", _GGML_TYPES[dtype], end))
        end += -(-_num_bytes(dtype, dims) // 32) * 32
    head += b"".join(infos)
    head += b"\0" * (-len(head) % 32)
    return SparseFile(head, len(head) + end)


def _gguf_text(text: str, count: str) -> bytes:
    return struct.pack(count, len(text.encode())) + text.encode()


def _gguf_value(value: Any, count: str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _gguf_text(value, count)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    items = b"".join(_gguf_text(item, count) for item in value)
    return struct.pack("<II", 9, 8) + struct.pack(count, len(value)) + items


def gptq_card() -> str:
    """Write the 7B card: the facts of its table, its prompt template, in Markdown."""
    dataset = "[Evol Instruct Code](https://example.org/datasets/evol)"
    rows = [
        f"| [{b.name}](https://example.org/tree/{b.name}) | {b.bits}"
        f" | {'None' if b.group_size == -1 else b.group_size} | {'Yes' if b.desc_act else 'No'}"
        f" | 0.1 | {dataset} | 8192 | {b.gigabytes} GB | words |"
        for b in GPTQ_BRANCHES
    ]
    header = "| Branch | Bits | GS | Act Order | Damp % | GPTQ Dataset | Seq Len | Size | Desc |"
    return _card("CodeLlama 7B Instruct", "[INST] {prompt}\n[/INST]", header, rows)


def awq_card() -> str:
    """Write the 70B card's facts."""
    header = "| Branch | Bits | GS | AWQ Dataset | Seq Len | Size |"
    row = "| [main](https://example.org/tree/main) | 4 | 128 | Evol Instruct Code | 4096 | 36.61 GB"
    return _card("Codellama 70B Instruct", "Source: user\n\n  {prompt} <step>", header, [row])


def gguf_card() -> str:
    """Write the 13B card's facts."""
    header = "| Name | Quant method | Bits | Size | Max RAM required | Use case |"
    rows = [
        f"| [codellama-13b-python.{kind}.gguf](https://example.org/{kind}) | {kind} | {kind[1]}"
        f" | {size} GB| {float(size) + 2.5:.2f} GB | words |"
        for kind, size in GGUF_FILES.items()
    ]
    return _card("CodeLlama 13B Python", "[INST] {prompt}\n[/INST]", header, rows)


def _card(name: str, template: str, header: str, rows: list[str]) -> str:
    rule = "|" + " --- |" * (header.count("|") - 1)
    table = "\n".join([header, rule, *rows])
    return (
        f"---\nlicense: llama2\nmodel_creator: Meta\nmodel_name: {name}\n---\n# {name}\n\n"
        f"## Prompt template: {name}\n\n```\n{template}\n```\n\n## Provided files\n\n{table}\n\n"
        "## Thanks\n"
    )


def write_files(folder: Path, files: Mapping[str, Content]) -> Path:
    """Write files to a folder; a sparse one takes the room of its head only."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(content.head if isinstance(content, SparseFile) else content)
            file.truncate(len(content))
    return folder


def write_cache(cache_dir: Path, name: str, repository: HubRepository) -> None:
    """Write a repository as the hub's client would have left it in its cache."""
    root = repository_folder(cache_dir, name)
    for branch, files in repository.branches.items():
        commit = repository.commits[branch]
        write_files(root / "snapshots" / commit, files)
        ref = root / "refs" / branch
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
