"""Predicts the memory that serving a variant takes: weights, keys and values, and all besides.

One `MemoryBreakdown` for each device. The plan shows it, the loader refuses by it, and what was
measured after loading is compared with it. Every constant says what it was measured on; those for
CUDA have not met a device yet. Formulas and figures: docs/planning.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loaders.checkpoint.shape import read_shape
from loaders.memory.engine_defaults import BLOCK_SIZE, KV_DTYPE, MAX_NUM_BATCHED_TOKENS
from loaders.memory.layers import parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from loaders.checkpoint.files import TensorInfo
    from loaders.checkpoint.shape import ModelShape
    from loaders.memory.engine_defaults import DeviceKind
    from loaders.memory.layers import Part
    from loaders.quantization.quantization import Quantization

# An engine's process without weights, KV cache or activations: Python, PyTorch and Transformers
# 368 MB, tokenizer, modules and what allocators keep 65 ± 4 (SmolLM2-135M at four widths, PyTorch
# 2.13, resident set on Linux, 2026-11).
CPU_LIBRARY_BYTES = 368_000_000
CPU_PROCESS_BYTES = CPU_LIBRARY_BYTES + 65_000_000
# Driver, kernels and cuBLAS's workspace on a device. Not measured: what such processes usually
# show is 300 to 600 MB.
CUDA_CONTEXT_BYTES = 500 * 1024**2
# Greedy and drawn rows need logits, probabilities and a copy, float32.
_LOGIT_COPIES = 3
# Gate and up run as one product, so twice the largest layer may be unpacked at once; the reference
# keeps layers apart.
_FUSED_LAYERS = {"int4pack": 2, "int4planes": 2, "int8pack": 2}


@dataclass(frozen=True, slots=True)
class Demand:
    """What shall run at once."""

    context: int  # tokens of each sequence, prompt and answer together
    users: int = 1  # sequences that are that long at the same time
    kv_dtype: str | None = None  # what keys and values are kept in; None is the engine's `auto`


@dataclass(frozen=True, slots=True)
class MemoryBreakdown:
    """Bytes on one device."""

    weights: int
    kv_cache: int
    activations: int  # at the largest prefill, logits included
    workspace: int  # what kernels unpack besides
    context: int  # the CUDA context; on CPU the process itself

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.activations + self.workspace + self.context

    def scaled(self, factor: float) -> MemoryBreakdown:
        """Correct weights and workspace by what was measured of this checkpoint before."""
        return replace(
            self, weights=round(self.weights * factor), workspace=round(self.workspace * factor)
        )


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What of a model one device holds, whatever is asked of it."""

    weights: int  # bytes
    workspace: int  # bytes
    num_layers: int
    is_last: bool  # computes the logits


@dataclass(frozen=True, slots=True)
class PreparedWeights:
    """A checkpoint's pieces on devices of one kind; made once, asked for many demands."""

    shape: ModelShape
    device: DeviceKind
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """All weights together."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def read_per_token(self) -> int:
        """Bytes of weights that one decoded token reads: all but the embedding."""
        return sum(part.num_bytes for part in self.parts if part.role != "embedding")

    @property
    def backend(self) -> str:
        """The kernels in use, most layers first, joined by "+"; "dense" where nothing is packed."""
        names = [part.kernel for part in self.parts if part.kernel]
        return "+".join(sorted(set(names), key=lambda name: -names.count(name))) or "dense"

    def shares(self, count: int = 1) -> tuple[DeviceShare, ...]:
        """Divide the layers over devices in equal shares, one after another.

        The embedding goes to the first, the head and all that belongs to no layer to the last.
        """
        return tuple(self._share(index, count) for index in range(count))

    def _share(self, index: int, count: int) -> DeviceShare:
        layers = _layers_of(index, count, self.shape.num_layers)
        own = [part for part in self.parts if _place(part, layers, index, count) == index]
        return DeviceShare(
            weights=sum(part.num_bytes for part in own),
            workspace=max((_scratch(part) for part in own), default=0),
            num_layers=len(layers),
            is_last=index == count - 1,
        )

    def memory(self, shares: Sequence[DeviceShare], demand: Demand) -> tuple[MemoryBreakdown, ...]:
        """Predict what each device holds when it serves the demand."""
        kv = kv_cache_bytes(self.shape, demand, self.device)
        return tuple(
            MemoryBreakdown(
                weights=share.weights,
                kv_cache=kv * share.num_layers // self.shape.num_layers,
                activations=activation_bytes(
                    self.shape, demand, self.device, is_last=share.is_last
                ),
                workspace=share.workspace,
                context=CPU_PROCESS_BYTES if self.device == "cpu" else CUDA_CONTEXT_BYTES,
            )
            for share in shares
        )

    def on_devices(self, demand: Demand, count: int = 1) -> tuple[MemoryBreakdown, ...]:
        """Predict what each of `count` devices holds when they serve the demand."""
        return self.memory(self.shares(count), demand)


def prepare(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    quantization: Quantization | None,
    device: DeviceKind,
    *,
    backend: str | None = None,
) -> PreparedWeights:
    """Work out what a checkpoint's tensors become; backend: None is `auto`.

    Raises CheckpointError where config.json does not say how large the model is.
    """
    parts = tuple(parts_of(tensors, quantization, device, kernel=_named(backend)))
    return PreparedWeights(read_shape(config), device, parts)


def predicted_memory(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    quantization: Quantization | None,
    device: DeviceKind,
    *,
    demand: Demand,
    backend: str | None = None,
    kv_cache: int | None = None,
) -> MemoryBreakdown:
    """Predict what one device holds; kv_cache: its bytes, where they are known already."""
    (predicted,) = prepare(tensors, config, quantization, device, backend=backend).on_devices(
        demand
    )
    return predicted if kv_cache is None else replace(predicted, kv_cache=kv_cache)


def _named(backend: str | None) -> str | None:
    return None if backend == "auto" else backend


def weight_bytes(
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization | None,
    device: DeviceKind,
    *,
    backend: str | None = None,
) -> int:
    """What a checkpoint's weights take on a device once prepared; backend: None is `auto`."""
    parts = parts_of(tensors, quantization, device, kernel=_named(backend))
    return sum(part.num_bytes for part in parts)


def kv_cache_bytes(shape: ModelShape, demand: Demand, device: DeviceKind) -> int:
    """Memory of the blocks that the demand fills, and of the one that is kept empty."""
    per_token = shape.kv_bytes_per_token(demand.kv_dtype or KV_DTYPE[device])
    blocks = -(-demand.context // BLOCK_SIZE) * demand.users + 1
    return blocks * BLOCK_SIZE * per_token


def activation_bytes(
    shape: ModelShape, demand: Demand, device: DeviceKind, *, is_last: bool = True
) -> int:
    """What the largest step needs between layers: a full chunk, at the end of a full context.

    Of either half of a layer the larger: residual, normed, queries with keys and values, those
    rotated, and what attention gives; or residual, normed, gate and up, twice where they are
    joined, and their product. Besides: one layer's keys and values, gathered and laid out for
    attention; the table of rotations; logits.
    """
    number = 4 if device == "cpu" else 2
    tokens = min(MAX_NUM_BATCHED_TOKENS[device], demand.context * demand.users)
    attention = 3 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    step = tokens * (2 * shape.hidden_size + max(attention, 5 * shape.intermediate_size))
    gathered = 2 * demand.context * 2 * shape.num_kv_heads * shape.head_dim
    rotations = 2 * demand.context * shape.head_dim
    total = number * (step + gathered + rotations)
    if device == "cuda":  # the reference multiplies in float32
        total += 4 * tokens * (shape.hidden_size + shape.intermediate_size)
    if is_last:
        total += demand.users * shape.vocab_size * 4 * _LOGIT_COPIES
    return total


def _layers_of(index: int, count: int, num_layers: int) -> range:
    each = math.ceil(num_layers / count)
    return range(min(index * each, num_layers), min((index + 1) * each, num_layers))


def _place(part: Part, layers: range, index: int, count: int) -> int | None:
    """Say that a part belongs to the device of these layers, or where else; None: elsewhere."""
    if part.block is not None:
        return index if part.block in layers else None
    return 0 if part.role == "embedding" else count - 1


def _scratch(part: Part) -> int:
    return part.scratch_bytes * _FUSED_LAYERS.get(part.kernel or "", 1)
