"""Turns every packed layer's tensors into a kernel, and tells which backends are in use.

Which backend a layer gets is decided in `loaders.model.kernels.resolve`, which layers are joined
before they are packed in `loaders.model.joint`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import structlog
import torch

from loaders.errors import CheckpointError
from loaders.memory.release import return_freed_memory
from loaders.model.joint import prepared_together
from loaders.model.kernels.output_slice import JoinedKernel
from loaders.model.kernels.protocol import GroupedBackend, LayerShape
from loaders.model.kernels.resolve import resolve_backend
from loaders.model.leftovers import log_left_over
from loaders.model.packed_linear import joined_bias, packed_layers
from loaders.quantization.packed_tensors import grouped_jointly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Set
    from typing import TypeAlias

    from torch import Tensor
    from transformers import PreTrainedModel

    from loaders.memory.release import MappedFiles
    from loaders.model.kernels.protocol import Backend, Kernel
    from loaders.model.packed_linear import PackedLinear
    from loaders.quantization.kernel_rules import DeviceFacts
    from loaders.quantization.packed_tensors import GroupedWeight

    # Is told each phase of loading, and how much of it is done, in percent, where that is known;
    # not always in the thread that loads, but then while that one waits.
    OnProgress: TypeAlias = Callable[[str, float | None], None]

log = structlog.get_logger(__name__)

# Freed memory goes back this often while layers are prepared; each time takes milliseconds.
_LAYERS_PER_TRIM = 32


def prepare_layers(
    model: PreTrainedModel,
    mapped: MappedFiles,
    *,
    dtype: torch.dtype,
    asked: str,
    excluded: frozenset[str],
    offloaded: Set[str],
    device_facts: DeviceFacts | None,
    on_progress: OnProgress,
) -> list[str]:
    """Prepare every packed layer's kernel; return the backends used, most layers first.

    dtype: of activations. asked: a backend's name, or "auto", which it is for offloaded layers in
    any case. excluded: backends that failed before. device_facts: of a GPU that the CPU stands for;
    None asks the devices themselves.
    """
    waiting = {name: each for name, each in packed_layers(model).items() if each.kernel is None}
    chosen: dict[str, Backend] = {}
    reasons: dict[str, str] = {}
    for name, layer in waiting.items():
        wanted = "auto" if name in offloaded else asked
        chosen[name], reason = resolve_backend(
            wanted, _shape_of(layer, dtype, None if name in offloaded else device_facts), excluded
        )
        reasons.setdefault(chosen[name].name, reason)
    had_bias = [layer for layer in waiting.values() if layer.bias is not None]

    joinable = {
        name: backend.name
        for name, backend in chosen.items()
        if isinstance(backend, GroupedBackend) and name not in offloaded
    }
    num_ready = 0
    for together in prepared_together(model, waiting, joinable):
        layers = [waiting[name] for name in together.names]
        _prepare(layers, chosen[together.names[0]], mapped, dtype, together.output_order)
        if num_ready % _LAYERS_PER_TRIM < len(layers):
            return_freed_memory()
            on_progress("preparing kernels", 100 * num_ready / len(waiting))
        num_ready += len(layers)

    counts = Counter(backend.name for backend in chosen.values())
    for name, count in counts.items():
        log.info("kernel_backend", backend=name, layers=count, reason=reasons[name])
    if zero_biases := [f"{layer.name}.bias" for layer in had_bias if layer.bias is None]:
        log_left_over("all-zero biases", zero_biases)
    return [name for name, _ in counts.most_common()]


def _prepare(
    layers: Sequence[PackedLinear],
    backend: Backend,
    mapped: MappedFiles,
    dtype: torch.dtype,
    output_order: Tensor | None,
) -> None:
    """Make the kernel of a layer, or of several that are joined."""
    if isinstance(backend, GroupedBackend):
        weight = _take_grouped(layers, mapped, output_order)
        bias = _bias_in_order(layers, output_order)
        kernel = backend.prepare_grouped(weight, bias, dtype)
        shares: Sequence[Kernel] = [kernel]
        if len(layers) > 1:
            sizes = [layer.out_features for layer in layers]
            shares = JoinedKernel(kernel, sizes, output_order).slices()
        for layer, share in zip(layers, shares, strict=True):
            layer.use_kernel(share, backend.name, is_bias_in_kernel=True)
        return
    for layer in layers:
        packed = layer.take_tensors()
        layer.use_kernel(backend.prepare(packed), backend.name)
        mapped.release(packed.stored.values())


def _take_grouped(
    layers: Sequence[PackedLinear], mapped: MappedFiles, output_order: Tensor | None
) -> GroupedWeight:
    """Turn layers' tensors into one grouped weight, and let go of them."""
    parts = [layer.take_tensors() for layer in layers]
    weight = grouped_jointly(parts, output_order)
    for part in parts:
        mapped.release(part.stored.values())
    return weight


def _bias_in_order(layers: Sequence[PackedLinear], output_order: Tensor | None) -> Tensor | None:
    """Return the bias of all layers' outputs in the order in which they are packed."""
    bias = joined_bias(layers)
    if bias is None or output_order is None:
        return bias
    return bias.view(len(layers), -1)[:, output_order].flatten()


def _shape_of(
    layer: PackedLinear, dtype: torch.dtype, device_facts: DeviceFacts | None
) -> LayerShape:
    if layer.format is None or layer.device is None:
        raise CheckpointError(f"layer {layer.name} holds no packed tensors")
    return LayerShape(
        layer.format,
        layer.in_features,
        layer.out_features,
        layer.device,
        dtype,
        _compute_capability(layer.device, device_facts),
    )


def _compute_capability(
    device: torch.device, device_facts: DeviceFacts | None
) -> tuple[int, int] | None:
    if device_facts is not None:
        return device_facts.compute_capability
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None
