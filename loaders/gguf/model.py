"""A GGUF model as the loader needs it: settings, tensors under Transformers' names, weights.

Blocks stay as they lie in the mapped file; only the embedding, which is looked up by the row, is
widened to halves. Every tensor's shape is held against the model that the metadata describes
before any weight is read.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from loaders.checkpoint.files import GGML_BLOCKS, TensorInfo
from loaders.errors import CheckpointError, TensorError
from loaders.gguf.architectures import EMBEDDING_NAME, Architecture, architecture_of
from loaders.gguf.config import file_type, make_config
from loaders.gguf.files import GgufFiles, open_files
from loaders.gguf.header import FLOAT_TYPES
from loaders.gguf.left_over import log_left_over, refusal, suspicions_of
from loaders.gguf.metadata import Settings
from loaders.gguf.places import place_tensors
from loaders.memory.release import MappedFiles
from loaders.quantization.layouts.gguf import BLOCK_TYPES, dequantize
from loaders.quantization.packed_format import PackedFormat
from loaders.quantization.quantization import Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedConfig

    from loaders.reports.suspicion import Suspicion

# The embedding is widened in slices of this many values, 16 bytes each while that is done.
_VALUES_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model that lies in GGUF files."""

    files: GgufFiles
    architecture: Architecture
    config: dict[str, Any]  # as config.json would say it
    names: Mapping[str, str]  # the model's name of a parameter → GGUF's of its tensor
    left_over: Mapping[str, str]  # GGUF's name of a tensor that the model does without → why

    @property
    def suspicions(self) -> tuple[Suspicion, ...]:
        """Reasons to doubt that the file is the model that its settings say."""
        return suspicions_of(self.left_over, self.config["num_hidden_layers"])

    @property
    def quantization(self) -> Quantization | None:
        """How the layers are packed; None where all of them are floats."""
        formats = {
            name.removesuffix(".weight"): format_of(self.files.tensors[stored].dtype)
            for name, stored in self.names.items()
            if self._is_packed(name)
        }
        if not formats:
            return None
        return Quantization(
            base=Counter(formats.values()).most_common(1)[0][0],
            desc_act=False,
            sym=False,
            source=self.files.path.name,
            formats=formats,
            label=file_type(self.files.metadata) or self._mix(),
        )

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor as the model will be given it."""
        found: dict[str, TensorInfo] = {}
        for name, stored in self.names.items():
            entry = self.files.tensors[stored]
            module = name.removesuffix(".weight")
            if not self._is_packed(name):
                dtype = entry.dtype if entry.dtype in FLOAT_TYPES else "F16"
                tensor = TensorInfo(name, dtype, entry.shape, self.files.path)
                found[name] = tensor
                continue
            shape = (entry.shape[0], entry.num_bytes // entry.shape[0])
            found[f"{module}.blocks"] = TensorInfo(f"{module}.blocks", "U8", shape, self.files.path)
            if self._row_order(name) is not None:
                found[f"{module}.rows"] = TensorInfo(
                    f"{module}.rows", "I32", shape[:1], self.files.path
                )
        return found

    def weights(self) -> dict[str, Tensor]:
        """Give every tensor: blocks as views of the mapped files, the embedding widened."""
        weights: dict[str, Tensor] = {}
        for name in self.names:
            weights |= self._weights_of(name)
        return weights

    def weight(self, name: str) -> Tensor | None:
        """Give one tensor of `tensors`, and read no other; None where there is none."""
        module, _, kind = name.rpartition(".")
        owner = f"{module}.weight" if kind in ("blocks", "rows") else name
        return self._weights_of(owner).get(name) if owner in self.names else None

    def _weights_of(self, name: str) -> dict[str, Tensor]:
        """Give what the model gets for one of its parameters: a packed one comes in parts."""
        stored, order = self.names[name], self._row_order(name)
        if self._is_packed(name):
            module = name.removesuffix(".weight")
            rows = {} if order is None else {f"{module}.rows": order.to(torch.int32)}
            return {f"{module}.blocks": self.files.stored(stored), **rows}
        if self.files.tensors[stored].dtype in FLOAT_TYPES:
            return {name: self._floats(name, stored, order)}
        return {name: _widened(stored, self.files, MappedFiles.find(self.files.paths))}

    def _floats(self, name: str, stored: str, order: Tensor | None) -> Tensor:
        values = self.files.values(stored)
        if self.architecture.norm_offset and name.endswith("norm.weight"):
            return values.float() - self.architecture.norm_offset
        if order is not None:
            return values[order]
        # Small ones outlive the loading, and the file with its pages need not.
        return values.clone() if values.dim() == 1 else values

    def _is_packed(self, name: str) -> bool:
        return name != EMBEDDING_NAME and self.files.tensors[self.names[name]].dtype in GGML_BLOCKS

    def _row_order(self, name: str) -> Tensor | None:
        """Say which row of the file each output is; None where they are in order."""
        if not self.architecture.rotates_neighbours or ".self_attn." not in name:
            return None
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        projection = name.split(".")[-2]
        if projection not in heads:
            return None
        return halves_from_pairs(self.config[heads[projection]], self.config["head_dim"])

    def _mix(self) -> str:
        counts = Counter(tensor.dtype for tensor in self.files.tensors.values())
        return "+".join(name for name, _ in counts.most_common() if name in GGML_BLOCKS)


def open_model(path: Path) -> GgufModel:
    """Open a GGUF model by its (first) file; reads headers and settings only.

    Raises LoadError for whatever does not make a model that is served here.
    """
    files = open_files(path)
    architecture = architecture_of(files.metadata)
    config = make_config(files.metadata, files.tensors, lambda name: _numbers(files, name))
    settings = Settings(files.metadata)
    places = place_tensors(architecture, settings, files.tensors, config["num_hidden_layers"])
    log_left_over(places.left_over)
    return GgufModel(files, architecture, config, places.names, places.left_over)


def check_shapes(model: GgufModel, config: PreTrainedConfig) -> None:
    """Raise TensorError unless the files hold all that the model needs, in its shapes."""
    try:
        with torch.device("meta"):
            skeleton: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"Transformers cannot build what {model.files.path.name} describes:"
            f" {type(error).__name__}: {error}"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.named_parameters()}
    if missing := sorted(expected.keys() - model.names.keys()):
        raise TensorError(
            f"{model.files.path.name} holds nothing for {len(missing)} tensors that the model"
            f" needs: {', '.join(missing[:4])}; download it again"
        )
    # A linear layer takes a bias also where its class has none.
    expected |= {
        f"{name}.bias": (module.out_features,)
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear)
    }
    if strangers := [stored for name, stored in model.names.items() if name not in expected]:
        raise refusal(strangers, model.architecture.model_type)
    for name, stored in model.names.items():
        if (shape := model.files.tensors[stored].shape) != expected[name]:
            raise TensorError(
                f"{stored} is {list(shape)}, expected {list(expected[name])} by the GGUF file's"
                " metadata"
            )


def format_of(dtype: str) -> PackedFormat:
    """Describe a block type as any other packed layer is described."""
    block_type = BLOCK_TYPES[dtype]
    return PackedFormat("gguf", dtype, block_type.bits, block_type.group_size)


def halves_from_pairs(num_heads: int, head_dim: int) -> Tensor:
    """Order rows for Transformers' rotary embedding: int64 [num_heads * head_dim].

    GGUF keeps the two rows that rotate together next to each other (0 32 1 33 …); Transformers
    expects all first ones, then all second ones.
    """
    rows = torch.arange(num_heads * head_dim).view(num_heads, head_dim // 2, 2)
    return rows.transpose(1, 2).flatten()


def _numbers(files: GgufFiles, name: str) -> list[float]:
    tensor = files.tensors[name]
    if tensor.dtype not in FLOAT_TYPES or len(tensor.shape) != 1:
        raise TensorError(f"{name} is {tensor.dtype} {list(tensor.shape)}, expected a row of F32")
    numbers: list[float] = files.values(name).float().tolist()
    return numbers


def _widened(stored: str, files: GgufFiles, mapped: MappedFiles) -> Tensor:
    """Dequantise a matrix to half precision, a slice at a time."""
    entry = files.tensors[stored]
    rows, width = entry.shape
    blocks, block_type = files.stored(stored), BLOCK_TYPES[entry.dtype]
    weight = torch.empty(entry.shape, dtype=torch.float16)
    for start in range(0, rows, at_once := math.ceil(_VALUES_AT_ONCE / width)):
        part = blocks[start : start + at_once]
        weight[start : start + at_once] = dequantize(block_type, part)
        mapped.release([part])
    if not bool(torch.isfinite(weight).all()):
        raise TensorError(f"{stored} holds values that half precision cannot; the file is damaged")
    return weight
