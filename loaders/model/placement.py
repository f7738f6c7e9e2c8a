"""Decides where a model goes and how it runs there, before a byte of its weights is read.

Every "auto" of a device and a dtype is answered here, once; which kernel runs a layer is
`loaders.model.kernels.resolve`'s to say, and `loaders.model.assembly` carries out what is decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import structlog
import torch

from loaders.errors import BackendError
from loaders.memory.device import weight_bytes
from loaders.memory.free import check_fits
from loaders.model.stock import STOCK

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from loaders.model.opened import OpenedCheckpoint

log = structlog.get_logger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What Transformers takes: one device under the empty name, or "auto" to spread over CUDA devices.
DeviceMap: TypeAlias = dict[str, torch.device] | str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes, and how it runs there: every "auto" answered but the kernels'."""

    device_map: DeviceMap
    dtype: torch.dtype  # of activations
    backend: str  # as it was asked for
    is_spread: bool  # whether a part may stay on the CPU

    @property
    def device(self) -> torch.device | None:
        """The one device; None where the model is spread over several."""
        return self.device_map[""] if isinstance(self.device_map, dict) else None

    @property
    def device_text(self) -> str:
        """Name it for people."""
        return str(self.device or self.device_map)

    @property
    def dtype_text(self) -> str:
        """Name the activations' dtype as settings do."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_stock(self) -> bool:
        """Whether Transformers' own quantizers load it."""
        return self.backend == STOCK


def resolve_placement(
    config: PreTrainedConfig, *, device: str, dtype: str, backend: str, cpu_offload: bool
) -> Placement:
    """Answer where a model of this config goes. Raises BackendError for what cannot be had here."""
    device_map = resolve_device_map(device)
    return Placement(
        device_map=device_map,
        dtype=resolve_dtype(dtype, config, device_map),
        backend=backend,
        is_spread=resolve_is_spread(cpu_offload, device_map, is_stock=backend == STOCK),
    )


def resolve_device_map(device: str) -> DeviceMap:
    """Answer where the weights go: one device, or "auto" to spread over CUDA devices."""
    num_gpus = torch.cuda.device_count()
    if device == "auto":
        if num_gpus > 1:
            return "auto"
        return {"": torch.device("cuda:0" if num_gpus == 1 else "cpu")}
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise BackendError(f"{device!r} is no device; use auto, cpu or cuda:0") from error
    if named.type not in ("cpu", "cuda"):
        raise BackendError(f"device {device} is not supported; use auto, cpu or cuda:0")
    if named.type == "cuda":
        index = named.index or 0
        if index >= num_gpus:
            raise BackendError(
                f"device {device} was asked for, this machine has {num_gpus} CUDA devices"
            )
        named = torch.device("cuda", index)
    return {"": named}


def resolve_dtype(asked: str, config: PreTrainedConfig, device_map: DeviceMap) -> torch.dtype:
    """Answer in which dtype activations are computed."""
    on_cpu = isinstance(device_map, dict) and device_map[""].type == "cpu"
    if asked == "auto":
        own = getattr(config, "dtype", None)
        on_cuda = own if own in (torch.float16, torch.bfloat16) else torch.float16
        return torch.float32 if on_cpu else on_cuda
    if asked not in DTYPES:
        raise BackendError(f"dtype {asked!r} is unknown; use auto, {', '.join(DTYPES)}")
    if on_cpu and asked != "float32":
        raise BackendError(f"dtype {asked} was asked for; on CPU activations are float32, use auto")
    return DTYPES[asked]


def resolve_is_spread(asked: bool, device_map: DeviceMap, *, is_stock: bool = False) -> bool:
    """Answer whether the CPU may hold a part of what is meant for one other device."""
    if not asked:
        return False
    if is_stock:
        raise BackendError("backend stock cannot leave weights on the CPU; use --backend auto")
    if isinstance(device_map, str):
        raise BackendError(
            "weights can be shared between the CPU and one CUDA device; name one, as in cuda:0"
        )
    if device_map[""].type == "cpu":
        log.info("offload_not_needed", reason="the whole model runs on the CPU")
        return False
    return True


def check_room(opened: OpenedCheckpoint, placement: Placement) -> None:
    """Raise NotEnoughMemoryError where the weights are more than the one device has free."""
    if placement.device is None or placement.is_spread:
        return
    needed = weight_bytes(
        opened.tensors,
        opened.quantization,
        "cpu" if placement.device.type == "cpu" else "cuda",
        backend=None if placement.is_stock else placement.backend,
    )
    check_fits(needed, placement.device)
