"""Makes a model of an opened checkpoint: built, on its devices, its kernels prepared.

The order of the steps keeps the peak of memory low. Where the model goes was decided in
`loaders.model.placement`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loaders.memory.free import free_device_bytes
from loaders.memory.release import MappedFiles, large_blocks_returned, return_freed_memory
from loaders.model.build import build_model
from loaders.model.dtypes import settle_on_cpu, settle_on_cuda
from loaders.model.layer_doubts import doubt_layers
from loaders.model.offload import choose_offloaded, move_others, wrap_offloaded
from loaders.model.prepare import prepare_layers
from loaders.model.stock import STOCK, wrap_stock_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loaders.model.opened import OpenedCheckpoint
    from loaders.model.placement import Placement
    from loaders.model.prepare import OnProgress
    from loaders.quantization.kernel_rules import DeviceFacts
    from loaders.reports.suspicion import Suspicion

_CPU_MAP = {"": torch.device("cpu")}


@dataclass(frozen=True, slots=True)
class AssembledModel:
    """A model on its devices, kernels prepared."""

    model: PreTrainedModel
    backends: list[str]  # in use, most layers first
    num_offloaded: int  # linear layers whose weights stay on the CPU
    suspicions: tuple[Suspicion, ...] = ()  # reasons to doubt that the files were read right


@large_blocks_returned()
def assemble(
    opened: OpenedCheckpoint,
    placement: Placement,
    *,
    excluded: frozenset[str],
    device_facts: DeviceFacts | None = None,
    on_progress: OnProgress,
) -> AssembledModel:
    """Read the weights, bring them where they belong, and prepare the kernels.

    excluded: backends that failed before. device_facts: of a GPU that the CPU stands for. Raises
    LoadError.
    """
    on_progress("reading the weights", None)
    device_map = _CPU_MAP if placement.is_spread else placement.device_map
    model, suspicions = build_model(opened, device_map, is_stock=placement.is_stock)
    mapped = MappedFiles.find(opened.files)
    if placement.is_stock:
        wrap_stock_linears(model)
    offloaded = _spread(model, placement, mapped)
    # The head before the layers: packing it takes the most memory besides what it keeps.
    _settle_dtypes(model, placement, mapped)
    backends = prepare_layers(
        model,
        mapped,
        dtype=placement.dtype,
        asked=placement.backend,
        excluded=excluded,
        offloaded=offloaded,
        device_facts=device_facts,
        on_progress=on_progress,
    )
    suspicions = (*suspicions, *doubt_layers(model))
    wrap_offloaded(model, offloaded)
    return_freed_memory()
    used = [STOCK] if placement.is_stock else backends
    return AssembledModel(model, used, len(offloaded), suspicions)


def _spread(model: PreTrainedModel, placement: Placement, mapped: MappedFiles) -> frozenset[str]:
    """Move what fits from the CPU to the device; return the linear layers that stay."""
    device = placement.device
    if not placement.is_spread or device is None:
        return frozenset()
    free, cpu_free = free_device_bytes(device), free_device_bytes(torch.device("cpu"))
    offloaded = choose_offloaded(model, device, free=free, cpu_free=cpu_free)
    move_others(model, device, offloaded, mapped)
    return offloaded


def _settle_dtypes(model: PreTrainedModel, placement: Placement, mapped: MappedFiles) -> None:
    if placement.device is not None and placement.device.type == "cpu":
        settle_on_cpu(model, mapped)
    else:
        settle_on_cuda(model, placement.dtype)
