"""What a variant may run on: a table of common GPUs, `--gpu` as people write it, and this machine.

A GPU's memory is what its driver reports, which is less than its name says where error correction
takes a part: an A10G is sold with 24 GB and has 22.5 GiB. Makers' GB are 2^30 bytes here, as they
are on the box. Nothing here needs a GPU, a driver or PyTorch; what GPUs are in this machine is
`loaders.planning.driver`'s to ask.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loaders.errors import InvalidDeviceError
from loaders.memory.free import cpu_free_bytes
from loaders.planning.driver import visible_gpus
from loaders.quantization.kernel_rules import DeviceFacts, has_bfloat16, has_triton

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loaders.memory.engine_defaults import DeviceKind
    from loaders.planning.driver import FoundDevice

MIB, GIB = 1024**2, 1024**3
MAX_DEVICES = 64
MAX_MEMORY_BYTES = 1024**5
_UNITS = {"mb": MIB, "mib": MIB, "m": MIB, "gb": GIB, "gib": GIB, "g": GIB, "": GIB, "tb": 1024**4}
_DEVICES = re.compile(
    r"(?:(?P<count>\d{1,4})\s*[x×]\s*)?(?P<name>[^:]{1,80}?)(?::(?P<size>.{0,40}))?"
)
_ENGINE_DEVICE = re.compile(r"auto|cpu|cuda(:(?P<index>\d{1,4}))?")
_FORMS = "use A10G, 2xA10G:24GB, NAME:SIZE for a GPU that is not in the table, cpu, cpu:16GB, auto"


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One model of GPU."""

    name: str
    sold_gib: int  # as it is sold
    memory_mib: int  # as its driver reports
    compute_capability: tuple[int, int]
    bandwidth: int  # 10^9 bytes a second, the maker's figure


@dataclass(frozen=True, slots=True)
class Devices:
    """What a variant shall run on: one device, or several alike."""

    kind: DeviceKind
    name: str  # of the GPU; "cpu"
    count: int
    memory_bytes: int  # of each; of this machine's own what is free
    bandwidth: int | None = None  # 10^9 bytes a second; None where it is not known
    compute_capability: tuple[int, int] | None = None
    total_bytes: int | None = None  # of each, where others may hold a part of it
    has_triton: bool = True  # False only of this machine, where it is not installed

    @property
    def one(self) -> Devices:
        """One of them: what an engine runs on."""
        return replace(self, count=1)

    @property
    def facts(self) -> DeviceFacts:
        """What the choice of kernels follows from."""
        # A CPU is this machine's, however much memory is named.
        is_wide = self.kind == "cuda" or has_bfloat16()
        return DeviceFacts(self.kind, self.compute_capability, self.has_triton, is_wide)

    def lasting_share(self, gpu_memory_utilization: float) -> float:
        """Which share of `memory_bytes` weights and KV cache may take for good.

        gpu_memory_utilization: what they may take of the whole GPU, what others hold included.
        """
        if self.kind == "cpu":
            return 1.0
        if self.total_bytes is None:
            return gpu_memory_utilization
        lasting = self.memory_bytes - (1 - gpu_memory_utilization) * self.total_bytes
        return max(0.0, lasting / self.memory_bytes) if self.memory_bytes else 0.0

    def __str__(self) -> str:
        times = f"{self.count} x " if self.count > 1 else ""
        return f"{times}{self.name} with {self.memory_bytes / GIB:.1f} GiB"


# Memory: what the driver tells as the total of such a GPU (public logs, read 2026-11). Compute
# capability: NVIDIA's list of CUDA GPUs. Bandwidth: NVIDIA's data sheet of each GPU.
_REPORTED = (
    GpuModel("A10", 24, 23028, (8, 6), 600),
    GpuModel("A10G", 24, 23028, (8, 6), 600),
    GpuModel("A40", 48, 46068, (8, 6), 696),
    GpuModel("RTX A6000", 48, 49140, (8, 6), 768),
    GpuModel("L4", 24, 23034, (8, 9), 300),
    GpuModel("L40", 48, 46068, (8, 9), 864),
    GpuModel("L40S", 48, 46068, (8, 9), 864),
    GpuModel("RTX 4090", 24, 24564, (8, 9), 1008),
    GpuModel("RTX 6000 Ada", 48, 49140, (8, 9), 960),
    GpuModel("RTX 5090", 32, 32607, (12, 0), 1792),
    GpuModel("RTX PRO 6000", 96, 97887, (12, 0), 1792),
    GpuModel("H100", 80, 81559, (9, 0), 3350),
    GpuModel("H100 NVL", 94, 95830, (9, 0), 3900),
    GpuModel("H200", 141, 143771, (9, 0), 4800),
    GpuModel("B200", 180, 183359, (10, 0), 8000),
    GpuModel("T4", 16, 15360, (7, 5), 320),
    GpuModel("P40", 24, 22919, (6, 1), 346),
)
# Memory: the data sheet's GB as GiB, which these GPUs' drivers report but for a few MiB.
_NOMINAL = (
    GpuModel("V100-16", 16, 16 * 1024, (7, 0), 900),
    GpuModel("V100-32", 32, 32 * 1024, (7, 0), 900),
    GpuModel("RTX 2080 Ti", 11, 11 * 1024, (7, 5), 616),
    GpuModel("RTX 3060-12", 12, 12 * 1024, (8, 6), 360),
    GpuModel("RTX 3090", 24, 24 * 1024, (8, 6), 936),
    GpuModel("RTX 4060 Ti-16", 16, 16 * 1024, (8, 9), 288),
    GpuModel("RTX 4070", 12, 12 * 1024, (8, 9), 504),
    GpuModel("RTX 4080", 16, 16 * 1024, (8, 9), 717),
    GpuModel("A30", 24, 24 * 1024, (8, 0), 933),
    GpuModel("A100-40", 40, 40 * 1024, (8, 0), 1555),
    GpuModel("A100-80", 80, 80 * 1024, (8, 0), 1935),
    # Error correction takes a sixteenth of these two's GDDR6, as it does of an A10's.
    GpuModel("A2", 16, 15 * 1024, (8, 6), 200),
    GpuModel("A16", 16, 15 * 1024, (8, 6), 200),
)
GPU_MODELS = (*_REPORTED, *_NOMINAL)


def parse_gpus(
    text: str,
    *,
    engine_device: str = "auto",
    probe: Callable[[], Sequence[FoundDevice]] | None = None,
) -> Devices:
    """Read what `--gpu` says; `auto` is what an engine would run on here.

    engine_device: the setting `device`; probe: lists the GPUs that programs may use. Raises
    InvalidDeviceError, with near matches, for what cannot be understood.
    """
    match = _DEVICES.fullmatch(text.strip())
    if match is None:
        raise InvalidDeviceError(f"{text!r} names no device; {_FORMS}")
    name, size = match["name"].strip(), match["size"]
    if name.lower() == "auto":
        if size is not None or match["count"]:
            raise InvalidDeviceError(f"auto is what this machine has, {text!r} says more; {_FORMS}")
        return this_machine(engine_device, probe or visible_gpus)
    count = _count(match["count"], text)
    if name.lower() == "cpu":
        if count != 1:
            raise InvalidDeviceError(f"a machine has one memory, {text!r} names {count}; {_FORMS}")
        return Devices("cpu", "cpu", 1, cpu_free_bytes() if size is None else _size(size, text))
    return _named(name, None if size is None else _size(size, text), count)


def this_machine(asked: str, probe: Callable[[], Sequence[FoundDevice]]) -> Devices:
    """Describe where an engine would run on this machine: one GPU with what is free, or the CPU.

    asked: auto, cpu or cuda:0, as the setting `device`; of several GPUs, auto is the one with the
    most memory free. Raises InvalidDeviceError.
    """
    match = _ENGINE_DEVICE.fullmatch(asked)
    if match is None:
        raise InvalidDeviceError(f"device {asked!r} is not supported; use auto, cpu or cuda:0")
    found = [] if asked == "cpu" else probe()
    if asked == "cpu" or (asked == "auto" and not found):
        return Devices("cpu", "cpu", 1, cpu_free_bytes())
    if asked == "auto":
        return _as_devices(max(found, key=lambda device: device.free_bytes))
    index = int(match["index"] or 0)
    if index >= len(found):
        raise InvalidDeviceError(
            f"device {asked} was asked for, the driver tells of {len(found)} that may be used"
        )
    return _as_devices(found[index])


def _as_devices(found: FoundDevice) -> Devices:
    gpu = find_gpu_model(found.name, found.memory_bytes)
    return Devices(
        "cuda",
        found.name,
        1,
        found.free_bytes,
        gpu.bandwidth if gpu else None,
        found.compute_capability or (gpu.compute_capability if gpu else None),
        total_bytes=found.memory_bytes,
        has_triton=has_triton(),
    )


def find_gpu_model(name: str, memory_bytes: int | None = None) -> GpuModel | None:
    """Find a GPU by its name, however it is spelt; by its memory where one name is sold in two.

    "NVIDIA A100-SXM4-80GB" is an A100-80, "GeForce RTX 4090" an RTX 4090.
    """
    wanted = _key(name)
    exact = [gpu for gpu in GPU_MODELS if wanted in (_key(gpu.name), _key(f"{gpu.name}GB"))]
    found = exact or [gpu for gpu in GPU_MODELS if _family(gpu) == wanted]
    if not found:
        # A driver's own names say more than the model, such as the form and the memory.
        words = set(re.split(r"[\s-]+", name.lower()))
        named = [gpu for gpu in GPU_MODELS if set(_words(gpu)) <= words]
        longest = max((len(_words(gpu)) for gpu in named), default=0)
        found = [gpu for gpu in named if len(_words(gpu)) == longest]
    if memory_bytes is not None:
        found.sort(key=lambda gpu: abs(gpu.memory_mib * MIB - memory_bytes))
    return found[0] if found else None


def _named(name: str, size: int | None, count: int) -> Devices:
    gpu = find_gpu_model(name, size)
    if gpu is None and size is None:
        near = difflib.get_close_matches(
            name.upper(), [c.name for c in GPU_MODELS], n=3, cutoff=0.4
        )
        known = f"like it: {', '.join(near)}" if near else "see docs/planning.md for the table"
        raise InvalidDeviceError(
            f"the GPU {name!r} is not in the table ({known}); say how much memory it has, as in"
            f" {name}:24GB"
        )
    if gpu is None or (size is not None and size != gpu.sold_gib * GIB):
        memory = size or 0
    else:  # a size that is the one it is sold with says nothing new
        memory = gpu.memory_mib * MIB
    return Devices(
        "cuda",
        gpu.name if gpu else name,
        count,
        memory,
        gpu.bandwidth if gpu else None,
        gpu.compute_capability if gpu else None,
    )


def _count(text: str | None, whole: str) -> int:
    count = int(text) if text else 1
    if not 1 <= count <= MAX_DEVICES:
        raise InvalidDeviceError(
            f"{whole!r} asks for {count} devices; 1 to {MAX_DEVICES} can be planned for"
        )
    return count


def _size(text: str, whole: str) -> int:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([a-z]*)", text.strip().lower())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise InvalidDeviceError(f"{text!r} in {whole!r} is no size; write it as 24GB or 8192MiB")
    size = int(float(match[1]) * unit)
    if not 0 < size <= MAX_MEMORY_BYTES:
        raise InvalidDeviceError(f"{text!r} in {whole!r} is no GPU's memory; write it as 24GB")
    return size


def _key(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia|geforce|tesla|rtx)+", "", letters)


def _family(gpu: GpuModel) -> str:
    return _key(re.sub(r"-\d+$", "", gpu.name))


def _words(gpu: GpuModel) -> list[str]:
    return re.sub(r"-\d+$", "", gpu.name).lower().split()
