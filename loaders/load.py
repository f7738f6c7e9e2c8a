"""Loads a variant: from its name to a model on its devices, ready to run.

The steps are the module: resolve the folder, read its settings, check every tensor, let
Transformers build and place the model with packed layers, prepare the kernels, settle dtypes. No
HTTP, no scheduling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import torch
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from loaders.checkpoint.generation_defaults import GenerationDefaults, read_generation_defaults
from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.errors import BackendError, CheckpointError, TensorError
from loaders.memory.device import weight_bytes
from loaders.memory.free import check_fits, free_device_bytes
from loaders.memory.release import MappedFiles, large_blocks_returned, return_freed_memory
from loaders.model.dtypes import settle_on_cpu, settle_on_cuda
from loaders.model.kernels.protocol import LayerShape
from loaders.model.kernels.resolve import resolve_backend
from loaders.model.offload import choose_offloaded, move_others, wrap_offloaded
from loaders.model.opened import open_checkpoint
from loaders.model.packed_linear import packed_layers
from loaders.model.quantizer import PackedConfig
from loaders.model.self_test.reference_weights import stored_weights
from loaders.model.self_test.run import run_self_test
from loaders.model.stock import STOCK, missing_packages, wrap_stock_linears
from loaders.records import Records
from loaders.repository.opening import open_snapshot
from loaders.repository.selection import find_quantisation
from loaders.repository.spec import VariantSpec, parse_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Set
    from pathlib import Path
    from typing import TypeAlias

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from loaders.checkpoint.files import TensorInfo
    from loaders.model.kernels.protocol import Backend
    from loaders.model.opened import OpenedCheckpoint
    from loaders.model.self_test.report import SelfTestReport
    from loaders.quantization.settings import Quantization

    # Is told each phase of loading, and how much of it is done, in percent, where that is known;
    # not always in the thread that loads, but then while that one waits.
    OnProgress: TypeAlias = Callable[[str, float | None], None]

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
    file: str | None  # of a GGUF variant that was named by its file or quantisation
    folder: Path  # of the small files; those of a GGUF file are written to the cache
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
    spec: VariantSpec
    tensors: Mapping[str, TensorInfo]  # of the checkpoint, from its headers
    provenance: Provenance
    self_test: SelfTestReport | None = None  # None where none was asked for


def load(
    spec: str | VariantSpec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    excluded_backends: frozenset[str] = frozenset(),
    self_test: bool = False,
    cache_dir: Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    cpu_offload: bool = False,
    on_progress: OnProgress | None = None,
) -> LoadedModel:
    """Load a variant onto its devices.

    device: "cpu", "cuda:N", "auto" (every CUDA device there is, else the CPU). dtype: of
    activations; "auto" is float32 on CPU, the checkpoint's own on CUDA. backend: "auto" or a
    kernel backend's name. excluded_backends: not to be used, since they failed before. cpu_offload:
    what one CUDA device cannot hold stays on the CPU. self_test: check what is loaded against the
    files. Raises LoadError, SelfTestError among them; the message says what was found, what was
    expected and what to do.
    """
    started = time.monotonic()
    if isinstance(spec, str):
        spec = parse_spec(spec)
    on_progress = on_progress or _ignore_progress
    on_progress("finding the files", None)
    snapshot = open_snapshot(
        spec,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        on_progress=partial(on_progress, "downloading"),
    )
    on_progress("checking the files", None)
    spec = _with_file(spec, snapshot.file)
    source = open_checkpoint(snapshot.folder, spec.file, cache_dir, for_stock=backend == STOCK)
    placement = _resolve_placement(
        source, device=device, dtype=dtype, backend=backend, cpu_offload=cpu_offload
    )
    tokenizer = load_tokenizer(source.folder)
    return_freed_memory()  # reading a tokenizer takes three times what it keeps
    _check_room(source, placement)
    placed = _place(source, placement, excluded_backends, on_progress)
    provenance = Provenance(
        repo=spec.repo,
        revision=spec.revision,
        commit=snapshot.commit,
        file=spec.file,
        folder=source.folder,
        backend="+".join(placed.backends) or "dense",
        dtype=str(placement.dtype).removeprefix("torch."),
        device=placement.device_text,
        num_offloaded=placed.num_offloaded,
    )
    report = None
    if self_test:  # outside of `_place`, where blocks that go back at once make it take 5 x as long
        on_progress("self-test", None)
        report = _test(placed.model, tokenizer, source, provenance, Records(cache_dir))
    log.info(
        "loaded",
        variant=str(spec),
        commit=snapshot.commit,
        quantization=str(source.quantization or "none"),
        backend=provenance.backend,
        device=provenance.device,
        seconds=round(time.monotonic() - started, 2),
    )
    return LoadedModel(
        model=placed.model,
        tokenizer=tokenizer,
        generation=read_generation_defaults(source.folder, source.config),
        quantization=source.quantization,
        spec=spec,
        tensors=source.tensors,
        provenance=provenance,
        self_test=report,
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes, and how it runs there: every "auto" answered but the kernels'."""

    device_map: dict[str, torch.device] | str
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
    def is_stock(self) -> bool:
        """Whether Transformers' own quantizers load it."""
        return self.backend == STOCK


@dataclass(frozen=True, slots=True)
class Placed:
    """A model on its devices, kernels prepared."""

    model: PreTrainedModel
    backends: list[str]  # in use, most layers first
    num_offloaded: int


def _resolve_placement(
    source: OpenedCheckpoint, *, device: str, dtype: str, backend: str, cpu_offload: bool
) -> Placement:
    device_map = resolve_device_map(device)
    return Placement(
        device_map=device_map,
        dtype=resolve_dtype(dtype, source.config, device_map),
        backend=backend,
        is_spread=resolve_is_spread(cpu_offload, device_map, is_stock=backend == STOCK),
    )


def _check_room(source: OpenedCheckpoint, placement: Placement) -> None:
    """Raise NotEnoughMemoryError before a byte of the weights is read."""
    if placement.device is None or placement.is_spread:
        return
    needed = weight_bytes(
        source.tensors,
        source.quantization,
        "cpu" if placement.device.type == "cpu" else "cuda",
        backend=None if placement.is_stock else placement.backend,
    )
    check_fits(needed, placement.device)


@large_blocks_returned()
def _place(
    source: OpenedCheckpoint,
    placement: Placement,
    excluded: frozenset[str],
    on_progress: OnProgress,
) -> Placed:
    """Read the weights, bring them where they belong, and prepare the kernels."""
    on_progress("reading the weights", None)
    device_map = _CPU_MAP if placement.is_spread else placement.device_map
    model = _build_model(source, device_map, is_stock=placement.is_stock)
    mapped = MappedFiles.find(source.files)
    if placement.is_stock:
        wrap_stock_linears(model)
    offloaded: frozenset[str] = frozenset()
    if placement.is_spread and placement.device is not None:
        offloaded = _spread(model, placement.device, mapped)
    # The head before the layers: packing it takes the most memory besides what it keeps.
    if placement.device is not None and placement.device.type == "cpu":
        settle_on_cpu(model, mapped)
    else:
        settle_on_cuda(model, placement.dtype)
    choose = partial(resolve_backend, excluded=excluded)
    asked = placement.backend
    backends = _prepare_layers(
        model, mapped, choose=choose, asked=asked, offloaded=offloaded, on_progress=on_progress
    )
    wrap_offloaded(model, offloaded)
    return_freed_memory()
    return Placed(model, [STOCK] if placement.is_stock else backends, len(offloaded))


def _test(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    source: OpenedCheckpoint,
    provenance: Provenance,
    records: Records,
) -> SelfTestReport:
    report = run_self_test(
        model,
        tokenizer,
        stored_weights(source, model),
        backend=provenance.backend,
        dtype=provenance.dtype,
        commit=provenance.commit,
        records=records.of(provenance.file),
    )
    return_freed_memory()
    return report


def _with_file(spec: VariantSpec, file: str | None) -> VariantSpec:
    """Name the GGUF file that a quantisation meant, as in `repo:Q4_K_M`."""
    if file is None or spec.file is not None:
        return spec
    is_quantisation = find_quantisation([file], spec.revision or "") is not None
    return replace(spec, file=file, revision=None if is_quantisation else spec.revision)


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
    free, cpu_free = free_device_bytes(device), free_device_bytes(torch.device("cpu"))
    offloaded = choose_offloaded(model, device, free=free, cpu_free=cpu_free)
    move_others(model, device, offloaded, mapped)
    return offloaded


def _build_model(
    source: OpenedCheckpoint, device_map: dict[str, torch.device] | str, *, is_stock: bool
) -> PreTrainedModel:
    """Let Transformers build the model and fill it; check that every tensor found its place."""
    # A server's log takes lines, not bars.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(source.config)]
    own_weights = source.read_weights
    extra: dict[str, Any] = {}
    packed_here = None if is_stock else source.quantization
    if packed_here is not None or own_weights is not None:
        extra["quantization_config"] = PackedConfig(packed_here, source.tensors)
    if own_weights is not None:
        extra["state_dict"] = own_weights()
    try:
        loaded = model_class.from_pretrained(
            None if own_weights is not None else source.folder,
            config=source.config,
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


def _ignore_progress(phase: str, percent: float | None) -> None:
    pass


def _prepare_layers(
    model: PreTrainedModel,
    mapped: MappedFiles,
    *,
    choose: Callable[[str, LayerShape], tuple[Backend, str]],
    asked: str,
    offloaded: Set[str],
    on_progress: OnProgress,
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
        chosen, reason = choose("auto" if layer.name in offloaded else asked, shape)
        layer.prepare(chosen, mapped)
        if number % _LAYERS_PER_TRIM == 0:
            return_freed_memory()
            on_progress("preparing kernels", 100 * number / len(waiting))
        counts[chosen.name] = counts.get(chosen.name, 0) + 1
        reasons.setdefault(chosen.name, reason)
    for name, count in counts.items():
        log.info("kernel_backend", backend=name, layers=count, reason=reasons[name])
    return sorted(counts, key=lambda name: -counts[name])
