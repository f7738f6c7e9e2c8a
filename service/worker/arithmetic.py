"""Says in words what decides how sums round here, beside checkpoint, kernels and versions.

Libraries choose their kernels by the processor, and by the sizes that threads share out among them.
Two idle servers that say the same, with all else in the fingerprint alike, give the same answers;
where threads adapt ("up to"), an answer given beside busy processes may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.execution.cpu_kernels import resolve_cpu_kernels
from engine.measured.machine import masks
from native.library import source_hash

if TYPE_CHECKING:
    from engine.config import EngineConfig

# What of a processor's abilities the products of matrices look at.
_ABILITIES = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8")
_CACHES = (("L1", "l1d_cache_size"), ("L2", "l2_cache_size"))


def arithmetic_of(
    device: torch.device,
    config: EngineConfig,
    *,
    do_threads_adapt: bool = False,
    kernel_choices: str = "",
) -> str:
    """Name the device, how it is used, and what prompts and caches are cut and kept as.

    do_threads_adapt: whether fewer threads than now compute while other processes are busy.
    kernel_choices: the engine's words for which of several kernels compute what.
    """
    kv_dtype = "the model's own" if config.kv_dtype is None else config.kv_dtype.value
    parts = [
        *(_gpu(device) if device.type == "cuda" else _cpu(do_threads_adapt=do_threads_adapt)),
        f"step kernels {config.step_kernels}",
        f"prompt attention {config.prompt_attention}",
        *_native_kernels(device, config),
        f"KV cache {kv_dtype}",
        f"steps of {config.max_num_batched_tokens} tokens in blocks of {config.block_size}",
        f"drafts of {config.num_speculative_tokens}",
        *([f"kernels: {kernel_choices}"] if kernel_choices else []),
    ]
    return ", ".join(parts)


def _native_kernels(device: torch.device, config: EngineConfig) -> list[str]:
    invariant = config.is_batch_invariant
    chosen = resolve_cpu_kernels(device, config.cpu_kernels, is_batch_invariant=invariant)
    return [f"native kernels {source_hash()[:8]}"] if chosen.name == "native" else []


def _gpu(device: torch.device) -> list[str]:
    return [torch.cuda.get_device_name(device)]


def _cpu(*, do_threads_adapt: bool) -> list[str]:
    has = torch.cpu.get_capabilities()
    abilities = [name for name in _ABILITIES if has.get(name)]
    level = torch.backends.cpu.get_cpu_capability()
    # Products are cut into what the caches hold, and so summed in other pieces.
    caches = [f"{name} cache of {has[key] >> 10} KiB" for name, key in _CACHES if has.get(key)]
    most = "up to " if do_threads_adapt else ""
    named = [str(has["cpu_name"])] if has.get("cpu_name") else []
    threads = f"{most}{torch.get_num_threads()} threads"
    return [*named, level, *abilities, *masks(), *caches, threads]
