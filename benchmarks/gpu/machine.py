"""Part "machine": on what all the others run, and which of PyTorch's operators are there."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import record
from loaders.planning.driver import ask_driver
from service.doctor.triton_needs import cache_folder, find_c_compiler, read_triton_facts

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.gpu.context import Context

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "huggingface_hub",
    "humming-kernels",
)
# Those that kernels are built upon or compared with; their arguments move between versions.
OPERATORS = (
    "_flash_attention_forward",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_cudnn_attention",
    "_weight_int4pack_mm",
    "_convert_weight_to_int4pack",
    "_weight_int8pack_mm",
    "_scaled_mm",
)


def run(context: Context) -> None:
    """Tell versions, device and operators."""
    context.save(
        commit=_commit(),
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        cuda=torch.version.cuda,
        hardware=record.hardware(),
        driver=_driver(),
        nvcc=_last_line("nvcc", "--version"),
        operators={name: _schema(name) for name in OPERATORS},
        has_varlen_attention=_has_varlen_attention(),
        triton=_describe_triton(),
        cores=os.cpu_count(),
    )
    context.save(summary=f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    if context.is_dry:
        return
    triton = _describe_triton()
    lacking = [
        name
        for name in ("version", "ptxas", "has_python_headers", "c_compiler")
        if not triton[name]
    ]
    found = _describe_device(context.device)
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    context.save(
        device=found,
        summary=f"{found['name']} (sm_{found['capability']}), {found['memory_gb']} GB, {versions}"
        + (f"; Triton lacks {', '.join(lacking)}" if lacking else ""),
    )


def _describe_device(device: str) -> dict[str, Any]:
    """Read a device's facts; raises where there is none."""
    facts = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": facts.name,
        "capability": f"{facts.major}{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "l2_mb": round(facts.L2_cache_size / 2**20),
        "memory_gb": round(total / 1e9, 1),
        "free_gb": round(free / 1e9, 1),
        "architectures": torch.cuda.get_arch_list(),
    }


def _describe_triton() -> dict[str, Any]:
    """Say what Triton has of what it compiles with, and where it keeps that."""
    facts, folder, compiler = read_triton_facts(), cache_folder(), find_c_compiler()
    return {
        "version": facts.version,
        "problem": facts.problem,
        "ptxas": None if facts.ptxas is None else str(facts.ptxas),
        "has_python_headers": facts.has_python_headers,  # launchers are built with them
        "c_compiler": compiler,
        "c_compiler_version": None
        if compiler is None
        else next(iter(_lines(compiler, "--version")), None),
        "cache": str(folder),
        # Where not, the parts take a folder of their own, which goes with the run.
        "is_cache_writable": os.access(_existing(folder), os.W_OK),
    }


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _driver() -> dict[str, Any]:
    answer = ask_driver()
    cuda = None if answer.cuda is None else "{}.{}".format(*answer.cuda)
    return {"version": answer.version, "cuda": cuda, "problem": answer.problem}


def _commit() -> str | None:
    try:
        return record.commit()
    except (OSError, subprocess.CalledProcessError):  # no git, or a tree without its history
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _schema(operator: str) -> str | None:
    overload = getattr(getattr(torch.ops.aten, operator, None), "default", None)
    return None if overload is None else str(overload._schema)


def _has_varlen_attention() -> bool:
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return False
    return hasattr(varlen, "varlen_attn")


def _lines(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _last_line(*command: str) -> str | None:
    return next(reversed(_lines(*command)), None)
