"""Loads a variant: from its name to a model on its devices, ready to run.

`load` is the list of the steps by name: resolve the files, check settings and headers, decide where
the model goes, let Transformers build it with packed layers, prepare the kernels, compare what came
out with the files. Each step's work is its own module's. No HTTP, no scheduling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from loaders.checkpoint.generation_defaults import GenerationDefaults, read_generation_defaults
from loaders.checkpoint.rust_panics import panics_as
from loaders.checkpoint.tokenizer import load_tokenizer
from loaders.demo.named import build_named
from loaders.errors import CheckpointError
from loaders.memory.release import return_freed_memory
from loaders.model.assembly import assemble
from loaders.model.opened import open_checkpoint
from loaders.model.placement import DTYPES, check_room, resolve_placement
from loaders.model.plausibility.run import find_suspicions
from loaders.model.self_test.live import LiveLayers
from loaders.model.self_test.reference_weights import StoredWeights
from loaders.model.self_test.run import run_self_test
from loaders.model.stock import STOCK
from loaders.records import Records
from loaders.repository.opening import open_snapshot
from loaders.repository.selection import find_quantisation
from loaders.repository.spec import VariantSpec, parse_spec
from loaders.repository.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from loaders.checkpoint.files import TensorInfo
    from loaders.model.assembly import AssembledModel
    from loaders.model.opened import OpenedCheckpoint
    from loaders.model.placement import Placement
    from loaders.model.prepare import OnProgress
    from loaders.quantization.kernel_rules import DeviceFacts
    from loaders.quantization.quantization import Quantization
    from loaders.reports.self_test import SelfTestReport
    from loaders.reports.suspicion import Suspicion
    from loaders.repository.snapshot import Snapshot
    from loaders.repository.verification import VerifiedFiles, VerifyMode

__all__ = ["DTYPES", "LoadedModel", "Provenance", "load"]

log = structlog.get_logger(__name__)


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
    suspicions: tuple[Suspicion, ...] = ()  # reasons to doubt that the files were read right
    verified: VerifiedFiles | None = None  # what was compared with hashes that are known
    live_layers: LiveLayers | None = None  # what goes on with the self-test; set together with it


def _broken_library(words: str) -> CheckpointError:
    return CheckpointError(f"a library broke on the checkpoint's files: {words}")


@panics_as(_broken_library)
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
    verify: VerifyMode = "changed",
    device_facts: DeviceFacts | None = None,
    on_progress: OnProgress | None = None,
) -> LoadedModel:
    """Load a variant onto its devices.

    device: "cpu", "cuda:N", "auto" (every CUDA device there is, else the CPU). dtype: of
    activations; "auto" is float32 on CPU, the checkpoint's own on CUDA. backend: "auto" or a
    kernel backend's name. excluded_backends: not to be used, since they failed before. cpu_offload:
    what one CUDA device cannot hold stays on the CPU. self_test: check what is loaded against the
    files. verify: when files are compared with the hashes that are known of them. device_facts: of
    a GPU that the CPU stands for, whose kernels it runs; None for what there is. Raises LoadError,
    SelfTestError among them.
    """
    started = time.monotonic()
    on_progress = on_progress or _ignore_progress
    spec, snapshot = _find_files(
        spec, on_progress, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    on_progress("checking the files", None)
    verification = Verification(spec, snapshot, verify, Records(cache_dir))
    verification.check_small_files()
    with verification.explaining_errors(on_progress):
        opened = open_checkpoint(snapshot.folder, spec.file, cache_dir, for_stock=backend == STOCK)
        verification.begin(opened.files)
        placement = resolve_placement(
            opened.config, device=device, dtype=dtype, backend=backend, cpu_offload=cpu_offload
        )
        tokenizer = _read_tokenizer(opened.folder)
        check_room(opened, placement)
        assembled = assemble(
            opened,
            placement,
            excluded=excluded_backends,
            device_facts=device_facts,
            on_progress=on_progress,
        )
    # Before anything is computed with the model, and kept of it.
    verified = verification.finish(on_progress)
    loaded = _describe(spec, snapshot, opened, placement, tokenizer, assembled, verified)
    if self_test:
        loaded = _test(loaded, opened, Records(cache_dir), on_progress)
        suspicions = find_suspicions(
            opened, loaded.model, loaded.tokenizer, known=loaded.suspicions
        )
        loaded = replace(loaded, suspicions=suspicions)
    _log(loaded, seconds=time.monotonic() - started)
    return loaded


def _ignore_progress(phase: str, percent: float | None) -> None:
    pass


def _find_files(
    spec: str | VariantSpec,
    on_progress: OnProgress,
    *,
    cache_dir: Path | None,
    token: str | None,
    local_files_only: bool,
) -> tuple[VariantSpec, Snapshot]:
    """Return the folder of the variant's files, and its name with the file that it meant.

    A branch of the demo is built where it is missing.
    """
    if isinstance(spec, str):
        spec = parse_spec(spec)
    on_progress("finding the files", None)
    demo_cache = build_named(spec, cache_dir, on_progress=on_progress)
    snapshot = open_snapshot(
        spec,
        cache_dir=demo_cache or cache_dir,
        token=token,
        local_files_only=local_files_only,
        on_progress=partial(on_progress, "downloading"),
    )
    return _with_file(spec, snapshot.file), snapshot


def _with_file(spec: VariantSpec, file: str | None) -> VariantSpec:
    """Name the GGUF file that a quantisation meant, as in `repo:Q4_K_M`."""
    if file is None or spec.file is not None:
        return spec
    is_quantisation = find_quantisation([file], spec.revision or "") is not None
    return replace(spec, file=file, revision=None if is_quantisation else spec.revision)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(folder)
    return_freed_memory()  # reading a tokenizer takes three times what it keeps
    return tokenizer


def _describe(
    spec: VariantSpec,
    snapshot: Snapshot,
    opened: OpenedCheckpoint,
    placement: Placement,
    tokenizer: PreTrainedTokenizerFast,
    assembled: AssembledModel,
    verified: VerifiedFiles,
) -> LoadedModel:
    """Put together what was loaded, and where it came from."""
    provenance = Provenance(
        repo=spec.repo,
        revision=spec.revision,
        commit=snapshot.commit,
        file=spec.file,
        folder=opened.folder,
        backend="+".join(assembled.backends) or "dense",
        dtype=placement.dtype_text,
        device=placement.device_text,
        num_offloaded=assembled.num_offloaded,
    )
    return LoadedModel(
        model=assembled.model,
        tokenizer=tokenizer,
        generation=read_generation_defaults(opened.folder, opened.config),
        quantization=opened.quantization,
        spec=spec,
        tensors=opened.tensors,
        provenance=provenance,
        suspicions=(*opened.suspicions, *assembled.suspicions, *verified.suspicions),
        verified=verified,
    )


def _test(
    loaded: LoadedModel, opened: OpenedCheckpoint, records: Records, on_progress: OnProgress
) -> LoadedModel:
    """Compare the model with its files. Raises SelfTestError.

    Outside of `assemble`, where blocks that go back at once make it take 5 x as long.
    """
    on_progress("self-test", None)
    provenance = loaded.provenance
    weights = StoredWeights(opened, loaded.model)
    live_layers = LiveLayers(opened.files, loaded.model, weights)
    report = run_self_test(
        loaded.model,
        loaded.tokenizer,
        weights,
        backend=provenance.backend,
        dtype=provenance.dtype,
        commit=provenance.commit,
        records=records.of(provenance.file),
    )
    return_freed_memory()
    return replace(loaded, self_test=report, live_layers=live_layers)


def _log(loaded: LoadedModel, *, seconds: float) -> None:
    provenance, verified = loaded.provenance, loaded.verified
    log.info(
        "loaded",
        variant=str(loaded.spec),
        commit=provenance.commit,
        quantization=str(loaded.quantization or "none"),
        backend=provenance.backend,
        device=provenance.device,
        seconds=round(seconds, 2),
        hashed_files=verified.num_files if verified else 0,
        hashed_bytes=verified.num_bytes if verified else 0,
        unchanged_files=verified.num_unchanged if verified else 0,
        waited_for_hashes_s=verified.waited_s if verified else 0.0,
    )
