"""How much of a GPU an engine's steps take beside weights and KV cache, known before it is made.

The formulas are `loaders.memory.device`'s, as a plan uses them; here they get what the settings
say. The KV cache leaves so much free (`service.worker.sizing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import torch

from engine.attention.kv_cache import resolve_kv_dtype
from engine.config import KVDtype
from loaders.errors import LoadError
from loaders.memory.device import Demand, prepare
from loaders.model.stock import STOCK
from loaders.quantization.kernel_rules import DeviceFacts, has_bfloat16, has_triton
from service.settings import unless_auto

if TYPE_CHECKING:
    from loaders.load import LoadedModel
    from loaders.memory.device import MemoryBreakdown
    from service.settings import WorkerSettings

log = structlog.get_logger(__name__)


def step_reserve(
    settings: WorkerSettings,
    loaded: LoadedModel,
    *,
    context: int,
    max_num_batched_tokens: int,
    has_graphs: bool,
) -> MemoryBreakdown | None:
    """Work out what the largest step and the recorded ones take: `reserve` of what is returned.

    What the kernels share since they were loaded is not in it, as it is not free any more.
    None on a CPU, and where the model's sizes are not known.

    context: the longest that a sequence shall be able to become.
    """
    if loaded.model.device.type != "cuda":
        return None
    demand = Demand(
        context=context,
        users=settings.max_num_seqs,
        kv_dtype=_other_kv_dtype(settings, loaded),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        has_graphs=has_graphs,
    )
    try:
        return prepare(
            loaded.tensors,
            loaded.model.config.to_dict(),
            loaded.quantization,
            facts_of_device(loaded.model.device),
            backend=backend_to_count(settings.backend, loaded),
        ).once_loaded(demand)
    except LoadError as error:
        log.warning("step_memory_not_predicted", reason=str(error))
        return None


def _other_kv_dtype(settings: WorkerSettings, loaded: LoadedModel) -> str | None:
    """Return what keys and values are kept in; None where attention computes in the same type."""
    asked = unless_auto(settings.kv_cache_dtype)
    if asked is None or resolve_kv_dtype(loaded.model, None) == KVDtype(asked):
        return None
    return asked


def backend_to_count(asked: str, loaded: LoadedModel) -> str:
    """Name what unpacks as the loaded layers do: what failed at load is not what "auto" says."""
    is_known = asked != STOCK  # other libraries' kernels: as much as the reference
    is_triton_used = "triton" in loaded.provenance.backend.split("+")
    return asked if is_known and is_triton_used else "reference"


def facts_of_device(device: torch.device) -> DeviceFacts:
    """Say what the choice of kernels follows from on a device of this machine."""
    if device.type != "cuda":
        return DeviceFacts("cpu", has_bfloat16=has_bfloat16())
    return DeviceFacts("cuda", torch.cuda.get_device_capability(device), has_triton())
