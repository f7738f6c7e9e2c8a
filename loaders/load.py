"""Loads a variant: from its name to a model on its devices, ready to run.

The steps are the module: resolve the folder, read its settings, check every tensor, let
Transformers build and place the model with packed layers, prepare the kernels, settle dtypes. No
HTTP, no scheduling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from loaders.checkpoint import Checkpoint, read_checkpoint
from loaders.config_limits import check_config
from loaders.errors import (
    BackendError,
    CheckpointError,
    QuantizationNotFoundError,
    TensorError,
    UnsupportedQuantizationError,
)
from loaders.float32 import settle_on_cpu, settle_on_cuda
from loaders.generation import GenerationDefaults, read_generation_defaults
from loaders.git_clone import open_folder
from loaders.hub import Snapshot, fetch
from loaders.kernels.protocol import LayerShape
from loaders.kernels.resolve import resolve_backend
from loaders.memory import check_fits, estimate_bytes, free_bytes
from loaders.model_config import make_model_config, read_config
from loaders.offload import choose_offloaded, move_others, wrap_offloaded
from loaders.packed_linear import packed_layers
from loaders.quantization import Quantization, read_quantization
from loaders.quantizer import PackedConfig
from loaders.resident_memory import MappedFiles, large_blocks_returned, return_freed_memory
from loaders.spec import VariantSpec, parse_spec
from loaders.stock import STOCK, hand_to_transformers, missing_packages, wrap_stock_linears
from loaders.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Set
    from pathlib import Path
    from typing import TypeAlias

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    # Is told each phase of loading, and how much of it is done, in percent, where that is known;
    # not always in the thread that loads, but then while that one waits.
    TellProgress: TypeAlias = Callable[[str, float | None], None]

log = structlog.get_logger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CPU_MAP = {"": torch.device("cpu")}
# Freed memory goes back this often while layers are prepared; each time takes milliseconds.
_LAYERS_PER_TRIM = 32
# Names that a checkpoint may carry and a model no longer needs (tables that Transformers computes
# itself).
_HARMLESS_EXTRAS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")
# What Transformers and safetensors raise on settings and files that make no sense.
_BUILD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    SafetensorError,
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a loaded model came from and how it runs."""

    repo: str
    revision: str | None  # as asked; None is the default branch
    commit: str | None  # None for a plain folder
    folder: Path
    backend: str  # the kernel backends in use, joined by "+"
    dtype: str  # of activations
    device: str
    num_offloaded: int = 0  # linear layers whose weights stay on the CPU, away from the device

    @property
    def is_eager_only(self) -> bool:
        """Whether layers do what no CUDA graph can hold, or nobody has tried to have held."""
        return self.num_offloaded > 0 or self.backend == STOCK


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that serving a variant needs."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    generation: GenerationDefaults
    quantization: Quantization | None  # None for a plain checkpoint, and what only stock reads
    provenance: Provenance


@large_blocks_returned()
def load(
    spec: str | VariantSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    cpu_offload: bool = False,
    progress: TellProgress | None = None,
) -> LoadedModel:
    """Load a variant onto its devices.

    device: "cpu", "cuda:N", "auto" (every CUDA device there is, else the CPU). dtype: of
    activations; "auto" is float32 on CPU, the checkpoint's own on CUDA. backend: "auto" or a
    kernel backend's name. cpu_offload: what one CUDA device cannot hold stays on the CPU. Raises
    LoadError; the message says what was found, what was expected and what to do.
    """
    started = time.monotonic()
    if isinstance(spec, str):
        spec = parse_spec(spec)
    if spec.file is not None:
        raise UnsupportedQuantizationError(f"{spec} is a GGUF file, which is not read yet")
    tell = progress or _tell_nobody
    tell("finding the files", None)
    snapshot = open_snapshot(
        spec,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        on_percent=partial(tell, "downloading"),
    )
    tell("checking the files", None)
    checkpoint = read_checkpoint(snapshot.folder)
    raw_config = read_config(snapshot.folder)
    config = make_model_config(raw_config)
    check_config(config)
    if is_stock := backend == STOCK:
        hand_to_transformers(config, raw_config)
    quantization = _read_quantization(checkpoint, raw_config, is_stock=is_stock)
    device_map = resolve_device_map(device)
    compute_dtype = resolve_dtype(dtype, config, device_map)
    is_spread = resolve_is_spread(cpu_offload, device_map, is_stock=is_stock)

    tokenizer = load_tokenizer(snapshot.folder)
    return_freed_memory()  # reading a tokenizer takes three times what it keeps
    if isinstance(device_map, dict) and not is_spread:
        needed = estimate_bytes(checkpoint.tensors, quantization, device_map[""])
        check_fits(needed, device_map[""])
    tell("reading the weights", None)
    packed_here = None if is_stock else quantization
    model = _build_model(checkpoint, config, packed_here, _CPU_MAP if is_spread else device_map)
    mapped = MappedFiles.find(checkpoint.shards)
    if is_stock:
        wrap_stock_linears(model)
    offloaded: frozenset[str] = frozenset()
    if is_spread and isinstance(device_map, dict):
        offloaded = _spread(model, device_map[""], mapped)
    # The head before the layers: packing it takes the most memory besides what it keeps.
    if isinstance(device_map, dict) and device_map[""].type == "cpu":
        settle_on_cpu(model, mapped)
    else:
        settle_on_cuda(model, compute_dtype)
    backends = _prepare_layers(model, mapped, asked=backend, offloaded=offloaded, tell=tell)
    wrap_offloaded(model, offloaded)
    if is_stock:
        backends = [STOCK]

    provenance = Provenance(
        repo=spec.repo,
        revision=spec.revision,
        commit=snapshot.commit,
        folder=snapshot.folder,
        backend="+".join(backends) or "dense",
        dtype=str(compute_dtype).removeprefix("torch."),
        device=device_map if isinstance(device_map, str) else str(device_map[""]),
        num_offloaded=len(offloaded),
    )
    return_freed_memory()
    log.info(
        "loaded",
        variant=str(spec),
        commit=snapshot.commit,
        quantization=str(quantization) if quantization else "none",
        backend=provenance.backend,
        device=provenance.device,
        seconds=round(time.monotonic() - started, 2),
    )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        generation=read_generation_defaults(snapshot.folder, config),
        quantization=quantization,
        provenance=provenance,
    )


def _read_quantization(
    checkpoint: Checkpoint, raw_config: Mapping[str, Any], *, is_stock: bool
) -> Quantization | None:
    """Return how it is quantised; None for a plain one, and for what only stock reads."""
    try:
        return read_quantization(checkpoint, raw_config)
    except (UnsupportedQuantizationError, QuantizationNotFoundError):
        if is_stock:
            return None
        raise


def open_snapshot(
    spec: VariantSpec,
    *,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    on_percent: Callable[[float], None] | None = None,
) -> Snapshot:
    """Return the folder that holds the variant's files, fetched if need be; see `hub.fetch`."""
    if spec.folder is not None:
        return open_folder(spec, cache_dir=cache_dir)
    return fetch(
        spec,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        on_percent=on_percent,
    )


def resolve_device_map(device: str) -> dict[str, torch.device] | str:
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


def resolve_dtype(
    asked: str, config: PreTrainedConfig, device_map: dict[str, torch.device] | str
) -> torch.dtype:
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


def resolve_is_spread(
    asked: bool, device_map: dict[str, torch.device] | str, *, is_stock: bool = False
) -> bool:
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


def _spread(model: PreTrainedModel, device: torch.device, mapped: MappedFiles) -> frozenset[str]:
    """Move what fits from the CPU to the device; return the linear layers that stay."""
    free, cpu_free = free_bytes(device), free_bytes(torch.device("cpu"))
    offloaded = choose_offloaded(model, device, free=free, cpu_free=cpu_free)
    move_others(model, device, offloaded, mapped)
    return offloaded


def _build_model(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    quantization: Quantization | None,
    device_map: dict[str, torch.device] | str,
) -> PreTrainedModel:
    """Let Transformers build the model and fill it; check that every tensor found its place."""
    # A server's log takes lines, not bars.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # The file whose headers were checked is the one that is read, whatever else lies there.
    config.transformers_weights = checkpoint.weights_file
    extra: dict[str, Any] = {}
    if quantization is not None:
        extra["quantization_config"] = PackedConfig(quantization, checkpoint.tensors)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            config=config,
            device_map=device_map,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with the tensor's name
            **extra,
        )
    except ImportError as error:
        raise missing_packages("this checkpoint", [f"a package ({error})"]) from error
    except _BUILD_ERRORS as error:
        raise CheckpointError(
            f"Transformers cannot build this checkpoint: {type(error).__name__}: {error}"
        ) from error
    model: PreTrainedModel = loaded[0]
    _check_report(loaded[1])
    model.requires_grad_(requires_grad=False)
    return model


def _check_report(report: Mapping[str, Any]) -> None:
    if missing := sorted(report["missing_keys"]):
        raise TensorError(
            f"the checkpoint lacks {len(missing)} tensors that the model needs:"
            f" {', '.join(missing[:6])};"
            " download it again"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise TensorError(f"{name} is {list(found)}, expected {list(expected)} by config.json")
    unexpected = [k for k in sorted(report["unexpected_keys"]) if not k.endswith(_HARMLESS_EXTRAS)]
    if unexpected:
        log.warning("tensors_unused", count=len(unexpected), first=unexpected[:6])


def _tell_nobody(phase: str, percent: float | None) -> None:
    pass


def _prepare_layers(
    model: PreTrainedModel,
    mapped: MappedFiles,
    *,
    asked: str,
    offloaded: Set[str],
    tell: TellProgress,
) -> list[str]:
    """Prepare every packed layer's kernel; return the backends used, most layers first.

    asked: a backend's name, or "auto", which it is for offloaded layers in any case.
    """
    counts: dict[str, int] = {}
    reasons: dict[str, str] = {}
    waiting = [layer for layer in packed_layers(model).values() if layer.kernel is None]
    for number, layer in enumerate(waiting):
        if layer.format is None or layer.device is None:
            raise CheckpointError(f"layer {layer.name} holds no packed tensors")
        shape = LayerShape(layer.format, layer.in_features, layer.out_features, layer.device)
        chosen, reason = resolve_backend("auto" if layer.name in offloaded else asked, shape)
        layer.prepare(chosen, mapped)
        if number % _LAYERS_PER_TRIM == 0:
            return_freed_memory()
            tell("preparing kernels", 100 * number / len(waiting))
        counts[chosen.name] = counts.get(chosen.name, 0) + 1
        reasons.setdefault(chosen.name, reason)
    for name, count in counts.items():
        log.info("kernel_backend", backend=name, layers=count, reason=reasons[name])
    return sorted(counts, key=lambda name: -counts[name])
