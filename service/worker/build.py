"""The engine's side, put together: a variant's settings in, an engine with its model out.

Joins the loaders and the engine, which know nothing of each other; what is "auto" about sizes is
answered by `service.worker.sizing`. Who calls `build_engine` steps the engine in the same thread:
OpenMP workers that another one had left would slow every step (docs/decisions.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import psutil
import structlog
import torch

from engine.attention.kv_cache import resolve_kv_dtype
from engine.core import Engine
from engine.errors import EngineError, EngineStartError, NotEnoughBlocksError, OutOfMemoryError
from engine.execution.device_faults import find_fault
from engine.execution.path import computes_natively, work_on
from engine.outputs import SequenceFailure
from engine.process.cpu_use import CpuUseReader
from engine.process.loop import BuiltEngine
from engine.process.thread_keeper import ThreadKeeper
from engine.request import SequenceRequest
from engine.sampling_params import SamplingParams
from loaders.cache import default_cache_dir
from loaders.demo import DEMO_REPO
from loaders.demo.named import build_named
from loaders.errors import (
    BackendError,
    LoadError,
    NotEnoughMemoryError,
    SelfTestError,
    SuspicionError,
)
from loaders.load import DTYPES, LoadedModel, load
from loaders.memory.cgroup import read_cpu_limit
from loaders.memory.free import is_refused_allocation
from loaders.memory.release import return_freed_memory
from loaders.model.kernels.resolve import backend_names
from loaders.records import Records
from loaders.repository.spec import parse_spec
from service.errors import ServiceError, SettingsError
from service.worker.arithmetic import arithmetic_of
from service.worker.attempt import Attempt
from service.worker.branch_choice import choose_variant, one_device
from service.worker.cpu_kernels import NATIVE_SUSPECTS, tell_cpu_kernels, without_failed
from service.worker.gpu_path import resolve_gpu_path
from service.worker.grammars import GrammarFactory
from service.worker.kernel_faults import explain_words
from service.worker.live_check import make_live_check
from service.worker.memory_report import MemoryMeter, compare, record
from service.worker.sizing import resolve_engine_config, why_shortened
from service.worker.step_test import StepTest
from service.worker_protocol.load_attempt import FailureKind, LoadAttempt, StartFailure
from service.worker_protocol.model_description import (
    CacheDescription,
    MemoryReport,
    ModelDescription,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from engine.config import EngineConfig
    from engine.process.loop import ReportProgress
    from loaders.repository.verification import VerifyMode
    from service.settings import WorkerSettings
    from service.worker.gpu_path import GpuPath
    from service.worker_protocol.load_attempt import LoadRequest

log = structlog.get_logger(__name__)

SELF_TEST_PROMPT = 64  # tokens
SELF_TEST_TOKENS = 4
FORESEEN = (LoadError, EngineError, ServiceError)


def build_engine(
    settings: WorkerSettings, load_request: LoadRequest, report_progress: ReportProgress
) -> BuiltEngine:
    """Load a variant and build its engine.

    Raises EngineStartError for what was foreseen, with what another attempt may do without.
    """
    settings = without_failed(settings, load_request)
    try:
        asked = prepare(settings, load_request)
        asked = choose(asked, settings, load_request, report_progress)
        # Before anything is measured: what building the demo leaves behind is not the variant's.
        build_named(parse_spec(asked.name), asked.cache_dir, on_progress=report_progress)
        return_freed_memory()
        meter = MemoryMeter(torch.device(asked.device))
        path = resolve_gpu_path(settings, load_request, torch.device(asked.device))
        attempt = Attempt(report_progress, () if path is None else path.backends)
        with attempt.blaming():
            loaded = load_variant(asked, settings, load_request, attempt, path)
        if settings.strict:
            refuse_suspicions(loaded)
        config = resolve_engine_config(settings, loaded, path, longest=load_request.max_model_len)
        known = LoadAttempt(variant=str(loaded.spec), max_model_len=config.max_model_len)
        attempt("building the engine", load_attempt=known.encode())
        engine, loaded = make_engine(loaded, config, path, attempt)
        live_check = make_live_check(
            engine.linears(), loaded.live_layers, loaded.provenance.backend
        )
        return_freed_memory()
    except (*FORESEEN, MemoryError, OSError, RuntimeError) as error:
        failure = failure_of(error, load_request)
        if failure is None and not isinstance(error, FORESEEN):
            raise
        raise start_error(reason_of(error), failure) from error
    # What a rehearsal takes is neither a CPU's nor a GPU's.
    is_real = path is None or path.rehearsed is None
    memory = compare(meter, loaded, config, backend=settings.backend) if is_real else None
    if memory is not None and not load_request.excluded_backends:
        record(memory, loaded, Records(settings.cache_dir))
    description = describe(
        loaded,
        memory,
        path,
        not_recorded=engine.recordings().lacking,
        is_batch_invariant=settings.batch_invariant,
    )
    shortened = why_shortened(
        loaded.model, config.max_model_len, settings, longest=load_request.max_model_len
    )
    keeper = keep_threads(settings, asked.device)
    description = msgspec.structs.replace(
        description,
        shortened=shortened,
        cache=describe_cache(loaded, config),
        arithmetic=_arithmetic(engine, loaded, config, do_threads_adapt=keeper is not None),
    )
    return BuiltEngine(engine, description.encode(), live_check, keeper)


def _arithmetic(
    engine: Engine, loaded: LoadedModel, config: EngineConfig, *, do_threads_adapt: bool
) -> str:
    return arithmetic_of(
        loaded.model.device,
        config,
        do_threads_adapt=do_threads_adapt,
        kernel_choices=engine.kernel_choices,
    )


def make_engine(
    loaded: LoadedModel, config: EngineConfig, path: GpuPath | None, attempt: Attempt
) -> tuple[Engine, LoadedModel]:
    """Build the engine and test it; return it with what its tests found."""
    backend = loaded.provenance.backend
    grammars = GrammarFactory(loaded.tokenizer)
    if computes_natively(loaded.model.device, config):
        with attempt.first_run("trying the C++ kernels", NATIVE_SUSPECTS):
            engine = Engine(loaded.model, config, constraints=grammars)
            return_freed_memory()  # what the engine's own layers replaced
            self_test(engine)
        engine.scheduler.reset_counters()
        return engine, loaded
    if path is None or config.is_batch_invariant:
        engine = Engine(loaded.model, config, constraints=grammars)
    else:
        step_test = StepTest(loaded, config, path, attempt)
        step_test.before_engine()
        engine = step_test.build_engine(grammars)
        step_test.of_engine(engine)
        loaded = replace(loaded, self_test=step_test.report)
    return_freed_memory()
    attempt("self-test")
    test_engine(engine, backend)
    engine.scheduler.reset_counters()
    return engine, loaded


def start_error(reason: str, failure: StartFailure | None) -> EngineStartError:
    """Return the error that ends an attempt; failure: what another one may do without."""
    encoded = None if failure is None else failure.encode()
    return EngineStartError(reason, start_failure=encoded)


def failure_of(error: Exception, load_request: LoadRequest) -> StartFailure | None:
    """Say what an attempt lacked, where another way to load the variant may do without."""
    if isinstance(error, SelfTestError):
        suspects = error.report.suspects & set(backend_names())
        meanings = filter(None, (explain_words(check.detail) for check in error.report.failures))
        return StartFailure(
            FailureKind.SELF_TEST,
            tuple(sorted(suspects)),
            error.report,
            detail=next(meanings, None),
        )
    if isinstance(error, BackendError) and load_request.excluded_backends:
        return StartFailure(FailureKind.SELF_TEST)  # none is left that had not failed
    if isinstance(error, EngineStartError):
        return StartFailure.of(error)
    return StartFailure(FailureKind.MEMORY) if is_out_of_memory(error) else None


def is_out_of_memory(error: Exception) -> bool:
    """Whether less would have fitted."""
    if isinstance(error, (NotEnoughMemoryError, NotEnoughBlocksError, OutOfMemoryError)):
        return True
    return is_refused_allocation(error)


def reason_of(error: Exception) -> str:
    """Say why an engine could not be built, and what to do where a library only names a number."""
    if isinstance(error, FORESEEN):
        return str(error)
    words = str(error) or type(error).__name__
    words = words[max(0, words.find("DefaultCPUAllocator")) :]  # without its place in the source
    return (
        f"there is not enough memory: {words}; free memory, lower kv_cache_size or max_model_len,"
        " or choose a smaller variant"
    )


def test_engine(engine: Engine, backend: str) -> None:
    """Have the engine's self-test blame the kernels in use for what it finds.

    backend: those in use, joined by "+". Raises EngineStartError, or what is no kernel's fault.
    """
    suspects = tuple(name for name in backend.split("+") if name in backend_names())
    try:
        self_test(engine)
    except (EngineStartError, RuntimeError) as error:
        if is_out_of_memory(error) or find_fault(error) is not None:
            raise
        failure = StartFailure(FailureKind.SELF_TEST, suspects)
        raise start_error(str(error), failure) from error


def self_test(engine: Engine) -> None:
    """Have a prompt read and answered by the engine's own layers and attention.

    What the model computes was checked when it was loaded (`loaders.model.self_test`). This is also
    what warms everything up, so that nobody meets a kernel that fails first. Raises
    EngineStartError, or whatever a step raises.
    """
    limits = engine.limits
    num_prompt_tokens = min(SELF_TEST_PROMPT, limits.max_model_len - SELF_TEST_TOKENS)
    if num_prompt_tokens < 1:
        return
    engine.add(
        SequenceRequest(
            sequence_id=-1,  # clients count from 0
            prompt_token_ids=tuple(i % limits.vocab_size for i in range(1, 1 + num_prompt_tokens)),
            params=SamplingParams(max_tokens=SELF_TEST_TOKENS, temperature=0.0),
        )
    )
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, SequenceFailure):
                raise EngineStartError(f"the self-test failed: {output.error}")
    engine.scheduler.check()


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """What an attempt is to load, where it is looked for, and where it will run."""

    name: str
    cache_dir: Path | None
    is_local: bool
    device: str


def prepare(settings: WorkerSettings, load_request: LoadRequest) -> ResolvedRequest:
    """Check the settings, set how many threads compute, and say what is to be loaded.

    The demo if the settings name nothing. Raises SettingsError, LoadError or EngineStartError
    before anything is fetched.
    """
    check_choice("backend", settings.backend, backend_names())
    check_choice("dtype", settings.dtype, DTYPES)
    device = resolve_device(settings.device)
    work_on(torch.device(device))
    tell_cpu_kernels(settings, torch.device(device))
    torch.set_num_threads(resolve_num_threads(settings))
    if settings.variant is None:
        cache_dir = settings.cache_dir or default_cache_dir()
        return ResolvedRequest(
            load_request.variant or DEMO_REPO, cache_dir, is_local=True, device=device
        )
    name = load_request.variant or settings.variant
    return ResolvedRequest(name, settings.cache_dir, settings.local_files_only, device)


def choose(
    asked: ResolvedRequest,
    settings: WorkerSettings,
    load_request: LoadRequest,
    report_progress: ReportProgress,
) -> ResolvedRequest:
    """Leave nothing open: of several variants that a name means, take the one that fits best."""
    report_progress("choosing the variant")
    attempt = choose_variant(
        parse_spec(asked.name),
        settings,
        load_request,
        cache_dir=asked.cache_dir,
        local_files_only=asked.is_local,
        device=asked.device,
    )
    report_progress("finding the files", load_attempt=attempt.encode())
    return replace(asked, name=attempt.variant)


def load_variant(
    asked: ResolvedRequest,
    settings: WorkerSettings,
    load_request: LoadRequest,
    report_progress: ReportProgress,
    path: GpuPath | None = None,
) -> LoadedModel:
    """Load what was chosen."""
    return load(
        parse_spec(asked.name),
        device=asked.device,
        dtype=settings.dtype,
        backend=settings.backend,
        excluded_backends=frozenset(load_request.excluded_backends),
        self_test=True,
        cache_dir=asked.cache_dir,
        token=settings.hub_token_value,
        local_files_only=asked.is_local,
        cpu_offload=settings.cpu_offload,
        verify=choose_verify_mode(settings, load_request),
        device_facts=None if path is None else path.facts,
        on_progress=report_progress,
    )


def choose_verify_mode(settings: WorkerSettings, load_request: LoadRequest) -> VerifyMode:
    """Say when files are hashed; those in doubt are each time, unless nobody wants any hashed."""
    if not load_request.doubts_files:
        return settings.verify
    if settings.verify == "never":
        log.warning(
            "files_in_doubt",
            reason="the live check found layers that differ from the files, and verify=never has"
            " nobody compare the files with their hashes; set it to changed or always",
        )
        return "never"
    return "always"


def refuse_suspicions(loaded: LoadedModel) -> None:
    """Raise SuspicionError where there is a reason to doubt what was loaded."""
    if loaded.suspicions:
        reasons = "; ".join(str(suspicion) for suspicion in loaded.suspicions)
        raise SuspicionError(
            f"{loaded.spec} may have been read wrongly, and --strict refuses that: {reasons}. Leave"
            " out --strict to serve it marked as suspect"
        )


def describe(
    loaded: LoadedModel,
    memory: MemoryReport | None,
    path: GpuPath | None = None,
    *,
    not_recorded: str | None = None,
    is_batch_invariant: bool,
) -> ModelDescription:
    """Describe a loaded model; not_recorded: what steps run without graphs that should not."""
    provenance, config = loaded.provenance, loaded.model.config
    return ModelDescription(
        repo=provenance.repo,
        revision=provenance.revision,
        commit=provenance.commit,
        file=provenance.file,
        folder=str(provenance.folder),
        quantization=_quantization_text(loaded),
        backend=provenance.backend,
        dtype=provenance.dtype,
        device=provenance.device + ("" if path is None else path.device_note),
        unsupported=_unsupported(path, not_recorded),
        is_batch_invariant=is_batch_invariant,
        model_type=config.model_type,
        vocab_size=getattr(config, "vocab_size", None),
        num_hidden_layers=getattr(config, "num_hidden_layers", None),
        defaults=loaded.generation,
        self_test=loaded.self_test,
        memory=memory,
        suspicions=loaded.suspicions,
    )


def describe_cache(loaded: LoadedModel, config: EngineConfig) -> CacheDescription:
    """Describe the KV cache."""
    return CacheDescription(
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        dtype=resolve_kv_dtype(loaded.model, config.kv_dtype).value,
        has_prefix_cache=config.has_prefix_cache,
    )


def _unsupported(path: GpuPath | None, not_recorded: str | None) -> str | None:
    reasons = [] if path is None or path.unsupported is None else [path.unsupported]
    return "; ".join([*reasons, *([not_recorded] if not_recorded else [])]) or None


def _quantization_text(loaded: LoadedModel) -> str:
    if loaded.quantization is not None:
        return str(loaded.quantization)
    return "as Transformers reads it" if loaded.provenance.backend == "stock" else "none"


def check_choice(name: str, asked: str, choices: Iterable[str]) -> None:
    """Raise SettingsError where a setting names none of its choices."""
    known = ("auto", *choices)
    if asked not in known:
        raise SettingsError(f"{name} is {asked!r}; choose one of {', '.join(known)}")


def resolve_device(asked: str) -> str:
    """Where to load: of several GPUs "auto" takes the emptiest, as the engine runs on one."""
    chosen = str(one_device(asked))
    if (num_gpus := torch.cuda.device_count()) > 1 and asked == "auto":
        log.info("one_gpu_used", device=chosen, of=num_gpus, reason="it has the most memory free")
    return chosen


def resolve_num_threads(settings: WorkerSettings) -> int:
    """How many threads one operation on the CPU may take."""
    if settings.num_threads != "auto":
        return settings.num_threads
    # Two threads of one core share its arithmetic units, which matrix products keep busy.
    cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
    allowed = read_cpu_limit()
    return cores if allowed is None else max(1, min(cores, int(allowed)))


def keep_threads(settings: WorkerSettings, device: str) -> ThreadKeeper | None:
    """Return what has fewer threads compute beside busy processes; None where they are fixed.

    Sums in another order may differ in their last bit, which `batch_invariant` rules out.
    """
    most = torch.get_num_threads()
    if settings.num_threads != "auto" or settings.batch_invariant or most == 1 or device != "cpu":
        return None
    reader = CpuUseReader()
    if not reader.is_possible:
        log.info("threads_fixed", threads=most, reason="/proc does not count who waits for a CPU")
        return None
    return ThreadKeeper(most, torch.set_num_threads, reader)
