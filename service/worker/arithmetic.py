"""Says in words what decides how sums round here, beside checkpoint, kernels and versions.

Libraries choose their kernels by the processor, and by the sizes that threads share out among them.
Two idle servers that say the same, with all else in the fingerprint alike, give the same answers;
where threads adapt ("up to"), an answer given beside busy processes may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from engine.config import EngineConfig

# What of a processor's abilities the products of matrices look at.
_ABILITIES = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8")
_CACHES = (("L1", "l1d_cache_size"), ("L2", "l2_cache_size"))


def arithmetic_of(
    device: torch.device, config: EngineConfig, *, do_threads_adapt: bool = False
) -> str:
    """Name the device, how it is used, and what prompts and caches are cut and kept as.

    do_threads_adapt: whether fewer threads than now compute while other processes are busy.
    """
    kv_dtype = "the model's own" if config.kv_dtype is None else config.kv_dtype.value
    parts = [
        *(_gpu(device) if device.type == "cuda" else _cpu(do_threads_adapt=do_threads_adapt)),
        f"step kernels {config.step_kernels}",
        f"prompt attention {config.prompt_attention}",
        f"KV cache {kv_dtype}",
        f"steps of {config.max_num_batched_tokens} tokens in blocks of {config.block_size}",
        f"drafts of {config.num_speculative_tokens}",
    ]
    return ", ".join(parts)


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
    return [*named, level, *abilities, *caches, f"{most}{torch.get_num_threads()} threads"]
