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
from loaders.memory import steps
from loaders.memory.engine_defaults import (
    BLOCK_SIZE,
    KV_DTYPE,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
)
from loaders.memory.layers import facts_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from loaders.checkpoint.files import TensorInfo
    from loaders.checkpoint.shape import ModelShape
    from loaders.memory.engine_defaults import DeviceKind
    from loaders.memory.layers import Part
    from loaders.quantization.kernel_rules import DeviceFacts
    from loaders.quantization.quantization import Quantization

# An engine's process without weights, KV cache or activations: Python, PyTorch and Transformers
# 368 MB, tokenizer, modules and what allocators keep 65 ± 4 (SmolLM2-135M at four widths, PyTorch
# 2.13, resident set on Linux, 2026-11).
CPU_LIBRARY_BYTES = 368_000_000
CPU_PROCESS_BYTES = CPU_LIBRARY_BYTES + 65_000_000
# Driver, kernels and cuBLAS's workspace on a device. Not measured: what such processes usually
# show is 300 to 600 MB.
CUDA_CONTEXT_BYTES = 500 * 1024**2
# Greedy and drawn rows need logits, probabilities and a copy, float32; on a CPU.
_LOGIT_COPIES = 3
# Gate and up run as one product, so twice the largest layer may be unpacked at once; the reference
# keeps layers apart.
_FUSED_LAYERS = {"int4pack": 2, "int4planes": 2, "int8pack": 2}

# Kernels that make their workspace while layers are prepared, and keep it.
_KEEPING_WORKSPACE = frozenset({"triton"})


@dataclass(frozen=True, slots=True)
class Demand:
    """What shall run at once."""

    context: int  # tokens of each sequence, prompt and answer together
    users: int = 1  # sequences that are that long at the same time
    kv_dtype: str | None = None  # what keys and values are kept in; None is the engine's `auto`
    max_num_seqs: int = MAX_NUM_SEQS  # sequences that an engine makes room for
    max_num_batched_tokens: int | None = None  # of a step; None is the engine's `auto`
    has_graphs: bool = True  # whether decode steps are recorded, on CUDA

    def step_tokens(self, device: DeviceKind) -> int:
        """Tokens of the largest step."""
        most = self.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS[device]
        return min(most, self.context * self.users)


@dataclass(frozen=True, slots=True)
class MemoryBreakdown:
    """Bytes on one device."""

    weights: int
    kv_cache: int
    activations: int  # at the largest prefill, logits included
    workspace: int  # what kernels unpack besides
    graphs: int  # the memory that recorded decode steps share; 0 where none are
    graph_launches: int  # what the driver keeps of those graphs themselves
    slots: int  # what sampling keeps of every sequence once a request asks for it; on CUDA
    context: int  # the CUDA context; on CPU the process itself

    @property
    def total(self) -> int:
        """All of it."""
        return self.lasting + self.reserve

    @property
    def reserve(self) -> int:
        """What steps take besides; an engine leaves it free when it sizes its cache."""
        graphs = self.graphs + self.graph_launches
        return self.activations + self.workspace + graphs + self.slots

    @property
    def lasting(self) -> int:
        """What `gpu_memory_utilization` bounds: what is there for good."""
        return self.weights + self.kv_cache + self.context

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
    """A checkpoint's pieces on devices that are alike; made once, asked for many demands."""

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
                activations=self._activations(demand, share),
                workspace=share.workspace,
                graphs=self._graphs(demand, share),
                graph_launches=self._graph_launches(demand, share),
                slots=self._slots(demand, share),
                context=CPU_PROCESS_BYTES if self.device == "cpu" else CUDA_CONTEXT_BYTES,
            )
            for share in shares
        )

    def _activations(self, demand: Demand, share: DeviceShare) -> int:
        found = activation_bytes(self.shape, demand, self.device, is_last=share.is_last)
        if self.device == "cuda" and self._has_reference:  # which multiplies in float32
            size = self.shape.hidden_size + self.shape.intermediate_size
            found += 4 * demand.step_tokens(self.device) * size
        return found

    def _graphs(self, demand: Demand, share: DeviceShare) -> int:
        """Of a reference that unpacks in a graph, the graphs' memory holds what it unpacks, too."""
        if self.device == "cpu" or not demand.has_graphs:
            return 0
        pool = steps.pool_bytes(
            self.shape, demand.max_num_seqs, demand.context, has_logits=share.is_last
        )
        return pool + (share.workspace if self._has_reference else 0)

    def _graph_launches(self, demand: Demand, share: DeviceShare) -> int:
        if self.device == "cpu" or not demand.has_graphs:
            return 0
        return steps.launch_bytes(share.num_layers, demand.max_num_seqs)

    def _slots(self, demand: Demand, share: DeviceShare) -> int:
        if self.device == "cpu" or not share.is_last:
            return 0
        return steps.slot_bytes(self.shape, demand.max_num_seqs)

    @property
    def _has_reference(self) -> bool:
        return any(part.kernel == "reference" for part in self.parts)

    def once_loaded(self, demand: Demand) -> MemoryBreakdown:
        """Predict what one device holds, but for the workspace that is there since loading.

        What is free then has lost that already.
        """
        made = (part for part in self.parts if part.kernel not in _KEEPING_WORKSPACE)
        workspace = max(map(_scratch, made), default=0)
        return replace(self.on_devices(demand)[0], workspace=workspace)

    def at_rest(self, demand: Demand) -> MemoryBreakdown:
        """Predict what a GPU holds between steps, before a request has asked for more than usual.

        No activations but the table of rotations, of workspace what is kept, graphs as they are
        recorded at the start, and no sampling's tables.
        """
        full = self.on_devices(demand)[0]
        kept = (part for part in self.parts if part.kernel in _KEEPING_WORKSPACE)
        graphs = full.graphs
        if graphs:
            sizes = self.shape, demand.max_num_seqs, demand.context
            graphs += steps.pool_bytes(*sizes, sampling_bytes=steps.START_SAMPLING_BYTES)
            graphs -= steps.pool_bytes(*sizes)
        return replace(
            full,
            activations=steps.rotation_bytes(self.shape, demand.context),
            workspace=max(map(_scratch, kept), default=0),
            graphs=graphs,
            slots=0,
        )

    def on_devices(self, demand: Demand, count: int = 1) -> tuple[MemoryBreakdown, ...]:
        """Predict what each of `count` devices holds when they serve the demand."""
        return self.memory(self.shares(count), demand)


def prepare(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    quantization: Quantization | None,
    device: DeviceKind | DeviceFacts,
    *,
    backend: str | None = None,
) -> PreparedWeights:
    """Work out what a checkpoint's tensors become; backend: None is `auto`.

    Raises CheckpointError where config.json does not say how large the model is.
    """
    facts = facts_of(device)
    parts = tuple(parts_of(tensors, quantization, facts, kernel=_named(backend)))
    return PreparedWeights(read_shape(config), facts.kind, parts)


def predicted_memory(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    quantization: Quantization | None,
    device: DeviceKind | DeviceFacts,
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
    device: DeviceKind | DeviceFacts,
    *,
    backend: str | None = None,
) -> int:
    """What a checkpoint's weights take on a device once prepared; backend: None is `auto`."""
    parts = parts_of(tensors, quantization, facts_of(device), kernel=_named(backend))
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

    On CUDA see `loaders.memory.steps`.

    On a CPU, of either half of a layer the larger: residual, normed, queries with keys and values,
    those rotated, and what attention gives; or residual, normed, gate and up, twice where they are
    joined, and their product. Besides: one layer's keys and values, gathered and laid out for
    attention; the table of rotations; logits.
    """
    tokens = demand.step_tokens(device)
    if device == "cuda":
        total = steps.layer_bytes(shape, tokens, min(tokens, demand.users))
        prefix = steps.prefix_bytes(shape, demand.context, demand.users)
        total += prefix + steps.widening_bytes(shape, prefix, demand.kv_dtype)
        total += steps.rotation_bytes(shape, demand.context)
        if is_last:
            total += steps.sampling_bytes(shape, demand.users)
        return total
    attention = 3 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    step = tokens * (2 * shape.hidden_size + max(attention, 5 * shape.intermediate_size))
    gathered = 2 * demand.context * 2 * shape.num_kv_heads * shape.head_dim
    rotations = 2 * demand.context * shape.head_dim
    total = 4 * (step + gathered + rotations)
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
