"""How long and how many sequences an engine holds, in the memory that the weights left.

Whatever is "auto" about an engine's size is answered here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import torch

from engine.attention.kv_cache import kv_block_bytes, resolve_kv_dtype, resolve_num_blocks
from engine.config import EngineConfig, KVDtype
from engine.errors import NotEnoughBlocksError
from engine.execution.rope import longest_with_fixed_rope
from loaders.cache import default_cache_dir
from loaders.memory.engine_defaults import BLOCK_SIZE, CPU_KV_BYTES, MAX_NUM_BATCHED_TOKENS
from loaders.memory.free import free_device_bytes
from service.errors import SettingsError
from service.settings import unless_auto
from service.worker.cpu_kernels import asked_cpu_kernels
from service.worker.step_reserve import step_reserve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loaders.load import LoadedModel
    from loaders.memory.device import MemoryBreakdown
    from service.settings import WorkerSettings
    from service.worker.gpu_path import GpuPath

log = structlog.get_logger(__name__)

CPU_KV_SHARE = 0.5  # of what is free, however much `CPU_KV_BYTES` allows


def resolve_engine_config(
    settings: WorkerSettings,
    loaded: LoadedModel,
    path: GpuPath | None = None,
    *,
    longest: int | None = None,
) -> EngineConfig:
    """How long and how many sequences may be, in the memory that the weights left.

    path: a GPU's way of running steps; None for a CPU's own. longest: tokens, what "auto" may be at
    most. How many may wait the client decides at once (`engine.transport.backlog`).
    """
    model, kv_dtype = loaded.model, _kv_dtype(settings, loaded)
    block_bytes = kv_block_bytes(model.config, BLOCK_SIZE, kv_dtype)
    asked_len = _asked_max_model_len(settings, model, longest)
    sequence_bytes = (-(-asked_len // BLOCK_SIZE) + 1) * block_bytes
    max_num_batched_tokens = resolve_max_num_batched_tokens(settings, model.device)
    enforce_eager = _resolve_enforce_eager(settings, loaded, path)
    reserve = step_reserve(
        settings,
        loaded,
        context=asked_len,
        max_num_batched_tokens=max_num_batched_tokens,
        has_graphs=not enforce_eager,
    )
    memory = resolve_kv_cache_bytes(
        settings,
        model.device,
        sequence_bytes,
        reserve_bytes=0 if reserve is None else reserve.reserve,
    )
    memory = _shrunk(memory, settings, model, sequence_bytes, longest)
    max_model_len = _resolve_max_model_len(settings, asked_len, memory // block_bytes - 1)
    num_blocks = resolve_num_blocks(
        memory,
        block_bytes,
        max_model_len=max_model_len,
        max_num_seqs=settings.max_num_seqs,
        block_size=BLOCK_SIZE,
    )
    config = EngineConfig(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        kv_dtype=kv_dtype,
        has_prefix_cache=settings.prefix_cache,
        num_speculative_tokens=settings.num_speculative_tokens,
        background_every_steps=settings.batch_every_steps,
        is_batch_invariant=settings.batch_invariant,
        enforce_eager=enforce_eager,
        step_kernels=settings.step_kernels if path is None else path.step_kernels,
        prompt_attention="auto" if path is None or path.has_flash else "sdpa",
        cpu_kernels=asked_cpu_kernels(settings),
        kernel_choice=settings.cpu_kernel_choice,
        kernel_choice_folder=(settings.cache_dir or default_cache_dir()) / "records",
    )
    return _logged(config, block_bytes, reserve)


def _kv_dtype(settings: WorkerSettings, loaded: LoadedModel) -> KVDtype:
    return resolve_kv_dtype(loaded.model, resolve_asked_kv_dtype(settings))


def _logged(
    config: EngineConfig, block_bytes: int, reserve: MemoryBreakdown | None
) -> EngineConfig:
    """Tell the sizes in the log, and return them."""
    log.info(
        "engine_sized",
        max_model_len=config.max_model_len,
        kv_cache_tokens=config.num_blocks * config.block_size,
        kv_cache_bytes=config.num_blocks * block_bytes,
        max_num_seqs=config.max_num_seqs,
        **_told(reserve),
    )
    return config


def _shrunk(
    memory: int,
    settings: WorkerSettings,
    model: PreTrainedModel,
    sequence_bytes: int,
    longest: int | None,
) -> int:
    """Have the cache shrink as the context does, where memory did not suffice for what "auto" is.

    Or the next attempt would fail as the last one.
    """
    if longest is None or settings.kv_cache_size != "auto":
        return memory
    share = min(1.0, longest / _made_for(model))  # of the context that the model was made for
    return min(memory, max(int(memory * share), sequence_bytes))


def _resolve_enforce_eager(
    settings: WorkerSettings, loaded: LoadedModel, path: GpuPath | None
) -> bool | None:
    if loaded.provenance.is_eager_only:
        return True  # weights that come and go are in no graph, whatever is asked for
    return unless_auto(settings.enforce_eager) if path is None else not path.has_graphs


def _told(reserve: MemoryBreakdown | None) -> dict[str, int]:
    """Say what is left free for steps, where something is."""
    if reserve is None:
        return {}
    return {
        "step_activation_bytes": reserve.activations,
        "step_workspace_bytes": reserve.workspace,
        "graph_bytes": reserve.graphs + reserve.graph_launches,
        "sampling_table_bytes": reserve.slots,
    }


def resolve_max_num_batched_tokens(settings: WorkerSettings, device: torch.device) -> int:
    """How many tokens a step may compute: what others wait for while a long prompt is read."""
    if settings.max_num_batched_tokens == "auto":
        chosen = MAX_NUM_BATCHED_TOKENS["cpu" if device.type == "cpu" else "cuda"]
        return max(chosen, settings.max_num_seqs)
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        raise SettingsError(
            f"max_num_batched_tokens is {settings.max_num_batched_tokens} and max_num_seqs is"
            f" {settings.max_num_seqs}; a step computes at least one token of each sequence"
        )
    return settings.max_num_batched_tokens


def resolve_asked_kv_dtype(settings: WorkerSettings) -> KVDtype | None:
    """What keys and values shall be kept in; None where that follows from the device."""
    asked = unless_auto(settings.kv_cache_dtype)
    return None if asked is None else KVDtype(asked)


def resolve_kv_cache_bytes(
    settings: WorkerSettings,
    device: torch.device,
    sequence_bytes: int,
    *,
    reserve_bytes: int = 0,
) -> int:
    """How much memory keys and values may take, once the weights are in place.

    sequence_bytes: what one sequence of full length takes. reserve_bytes: what steps take beside,
    on a GPU; where `gpu_memory_utilization` leaves less, the cache does not.
    """
    if settings.kv_cache_size != "auto":
        return int(settings.kv_cache_size)
    free = free_device_bytes(device)
    if device.type != "cuda":
        return min(int(free * CPU_KV_SHARE), max(CPU_KV_BYTES, sequence_bytes))
    total = torch.cuda.get_device_properties(device).total_memory
    left_free = max((1 - settings.gpu_memory_utilization) * total, reserve_bytes)
    return max(0, int(free - left_free))


def _asked_max_model_len(
    settings: WorkerSettings, model: PreTrainedModel, longest: int | None
) -> int:
    """Return how long a sequence shall be able to become: what the settings say, or the model."""
    made_for = _made_for(model)
    if settings.max_model_len == "auto":
        fixed = longest_with_fixed_rope(model.config) or made_for
        if fixed < made_for:
            log.warning(
                "context_shortened",
                made_for=made_for,
                now=fixed,
                reason="longer positions would change their angles with the batch",
            )
        return min(made_for, fixed, longest or made_for)
    if settings.max_model_len > made_for:
        raise SettingsError(
            f"max_model_len is {settings.max_model_len}; this model was made for {made_for} tokens"
        )
    return settings.max_model_len


def _made_for(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config(decoder=True).max_position_embeddings)


def _resolve_max_model_len(
    settings: WorkerSettings, asked_len: int, num_fitting_blocks: int
) -> int:
    """How long a sequence may become; "auto" gives way where memory is short, a number does not."""
    fitting_len = num_fitting_blocks * BLOCK_SIZE
    if settings.max_model_len != "auto" or fitting_len >= asked_len or num_fitting_blocks < 1:
        return asked_len
    if settings.strict:
        raise NotEnoughBlocksError(
            f"{asked_len} tokens do not fit the memory for keys and values, {fitting_len} do; set"
            " max_model_len, or leave out --strict"
        )
    log.warning(
        "context_shortened",
        made_for=asked_len,
        now=fitting_len,
        reason="the KV cache holds no more",
    )
    return fitting_len


def why_shortened(
    model: PreTrainedModel,
    max_model_len: int,
    settings: WorkerSettings,
    *,
    longest: int | None = None,
) -> str | None:
    """Say what "auto" made of the model's context where it gave a part of it up for memory.

    longest: what the attempt allowed, in tokens; that it is less is told by who decided so.
    """
    possible = _asked_max_model_len(settings, model, longest)
    if settings.max_model_len != "auto" or max_model_len >= possible:
        return None
    return f"context {max_model_len} of {possible} tokens: no more memory for keys and values"
