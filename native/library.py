"""Finds the compiled kernels, and loads them or says why not."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from native.masks import mask_of_bfloat16, mask_of_tiles
from native.sources import COMPILED, INSTRUCTIONS, OLDEST_TORCH, library_path, source_hash

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["is_loaded", "source_hash", "why_not"]

_COMPILE = "install g++ if there is none, then run scripts/setup, or python -m native.build"


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether the kernels can run here."""

    system: str  # as `sys.platform` says
    architecture: str  # as `platform.machine()` says
    instructions: Mapping[str, object]  # as `torch.cpu.get_capabilities` tells
    level: str  # that PyTorch's own kernels are chosen by
    environment: Mapping[str, str]
    torch_version: tuple[int, int]


def read_machine() -> Machine:
    """Look at this process's machine."""
    major, minor = torch.__version__.split(".")[:2]
    return Machine(
        system=sys.platform,
        architecture=platform.machine(),
        instructions=torch.cpu.get_capabilities(),
        level=torch.backends.cpu.get_cpu_capability(),
        environment=os.environ,
        torch_version=(int(major), int(minor)),
    )


@cache
def why_not() -> str | None:
    """Say why the kernels cannot be used in this process; None where they can, and are loaded.

    The reason comes first; where something can be done about it, that follows after "; ".
    """
    return why_not_on(read_machine()) or why_not_loaded(COMPILED)


def is_loaded() -> bool:
    """Whether the kernels are in this process, as they are once `why_not` found nothing.

    Loads nothing: who wants them left out asks this.
    """
    return hasattr(torch.ops.tetrad, "int4_multiply")


def why_not_on(machine: Machine) -> str | None:
    """Say what of a machine or of how it is set keeps the kernels from running."""
    if machine.system != "linux" or machine.architecture != "x86_64":
        place = f"{machine.system} on {machine.architecture}"
        return f"the C++ kernels are for Linux on x86-64, and this is {place}"
    if machine.torch_version < OLDEST_TORCH:
        found, oldest = (".".join(map(str, v)) for v in (machine.torch_version, OLDEST_TORCH))
        return f"PyTorch {found} is too old for the C++ kernels; install {oldest} or newer"
    lacking = [name for name in INSTRUCTIONS if not machine.instructions.get(name)]
    if lacking:
        return f"this CPU lacks {', '.join(lacking)}"
    return _why_masked(machine)


def _why_masked(machine: Machine) -> str | None:
    """Who has PyTorch do without instructions wants none of them from anybody else."""
    if not machine.level.startswith("AVX512"):
        asked = machine.environment.get("ATEN_CPU_CAPABILITY")
        if asked is None:
            return f"PyTorch computes at the level {machine.level} here, below AVX512"
        return f"ATEN_CPU_CAPABILITY={asked} rules AVX-512 out; unset ATEN_CPU_CAPABILITY"
    limit = mask_of_bfloat16(machine.environment)
    if limit is None:
        return None
    return f"{limit} rules products of bfloat16 out; unset {limit.partition('=')[0]}"


def allows_tiles(machine: Machine) -> bool:
    """Whether tile registers (AMX) for bfloat16 are there, and nobody wants them left alone."""
    has = machine.instructions
    is_there = bool(has.get("amx_tile") and has.get("amx_bf16"))
    return is_there and mask_of_tiles(machine.environment) is None


def why_not_loaded(folder: Path) -> str | None:
    """Load the library of these sources from the folder; say why where that fails."""
    library = library_path(folder)
    if not library.is_file():
        others = any(folder.glob("kernels-*.so"))
        found = "compiled from other sources" if others else "not compiled"
        return f"the C++ kernels are {found}; {_COMPILE}"
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:  # RuntimeError: what registering operators raises
        said = str(error).splitlines()[0]
        return f"{library} cannot be loaded ({said}); delete it, and {_COMPILE}"
    return None
