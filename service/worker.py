"""The engine's side, put together: a variant's settings in, an engine with its model out.

The only place beside the tests that knows the loaders and the engine at once; whatever is "auto" in
a variant's settings is answered here. Who calls `build_engine` steps the engine in the same thread:
OpenMP workers that another one had left would slow every step (docs/decisions.md).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil
import structlog
import torch

from engine.config import EngineConfig, KVDtype
from engine.core import Engine
from engine.errors import EngineError, EngineStartError, NotEnoughBlocksError, OutOfMemoryError
from engine.kv_cache import kv_block_bytes, resolve_kv_dtype, resolve_num_blocks
from engine.loop import BuiltEngine
from engine.outputs import SequenceFailure
from engine.request import SequenceRequest
from engine.rope import longest_with_fixed_rope
from engine.sampling_params import SamplingParams
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.errors import BackendError, LoadError, NotEnoughMemoryError, SelfTestError
from loaders.kernels.resolve import backend_names
from loaders.load import DTYPES, LoadedModel, load
from loaders.memory import free_bytes, is_refused_allocation
from loaders.records import Records
from loaders.resident_memory import return_freed_memory
from loaders.spec import parse_spec
from service.attempt import Failure, StartFailure, Trial
from service.choice import choose_variant, one_device
from service.errors import ServiceError, SettingsError
from service.memory_report import MemoryMeter, compare, record
from service.model_description import MemoryReport, ModelDescription

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from engine.loop import TellProgress
    from service.attempt import Attempt
    from service.settings import WorkerSettings

log = structlog.get_logger(__name__)

BLOCK_SIZE = 16
SELF_TEST_PROMPT = 64  # tokens
SELF_TEST_TOKENS = 4
CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
# On a CPU other programs live in the same memory, and the cache is filled with zeros at the start
# (2 GiB take about a second): no more than this, unless one sequence of full length needs it.
CPU_KV_BYTES = 2 * 1024**3
CPU_KV_SHARE = 0.5  # of what is free, in any case
# Half a second's reading on two cores, some tens of milliseconds on a GPU.
CPU_BATCHED_TOKENS = 512
CUDA_BATCHED_TOKENS = 2048
FORESEEN = (LoadError, EngineError, ServiceError)


def build_engine(settings: WorkerSettings, attempt: Attempt, tell: TellProgress) -> BuiltEngine:
    """Load a variant and build its engine.

    Raises EngineStartError for what was foreseen; its `about` says what another attempt may mend.
    """
    try:
        meter = MemoryMeter(one_device(settings.device))
        loaded = load_variant(settings, attempt, tell)
        config = resolve_engine_config(settings, loaded, longest=attempt.max_model_len)
        trial = Trial(variant=str(loaded.spec), max_model_len=config.max_model_len)
        tell("building the engine", about=trial.encode())
        engine = Engine(loaded.model, config)
        return_freed_memory()  # what the engine's own layers replaced
        tell("self-test")
        test_engine(engine, loaded.provenance.backend)
    except (*FORESEEN, MemoryError, OSError, RuntimeError) as error:
        failure = failure_of(error, attempt)
        if failure is None and not isinstance(error, FORESEEN):
            raise
        told = b"" if failure is None else failure.encode()
        raise EngineStartError(reason_of(error), about=told) from error
    memory = compare(meter, loaded, config, backend=settings.backend)
    if memory is not None and not attempt.excluded_backends:
        record(memory, loaded, Records(settings.cache_dir))
    about = describe(loaded, memory, is_batch_invariant=settings.batch_invariant)
    shortened = why_shortened(
        loaded.model, config.max_model_len, settings, longest=attempt.max_model_len
    )
    return BuiltEngine(engine, msgspec.structs.replace(about, shortened=shortened).encode())


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


def failure_of(error: Exception, attempt: Attempt) -> StartFailure | None:
    """Say what an attempt lacked, where another way to load the variant may do without."""
    if isinstance(error, SelfTestError):
        suspects = error.report.suspects & set(backend_names())
        return StartFailure(Failure.SELF_TEST, tuple(sorted(suspects)), error.report)
    if isinstance(error, BackendError) and attempt.excluded_backends:
        return StartFailure(Failure.SELF_TEST)  # none is left that had not failed
    if isinstance(error, EngineStartError):
        return StartFailure.decode(error.about)
    return StartFailure(Failure.MEMORY) if is_want_of_memory(error) else None


def is_want_of_memory(error: Exception) -> bool:
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
        if is_want_of_memory(error):
            raise
        about = StartFailure(Failure.SELF_TEST, suspects).encode()
        raise EngineStartError(str(error), about=about) from error


def self_test(engine: Engine) -> None:
    """Have a prompt read and answered by the engine's own layers and attention.

    What the model computes was checked when it was loaded (`loaders.self_test`). This is also what
    warms everything up, so that nobody meets a kernel that fails first. Raises EngineStartError, or
    whatever a step raises.
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


def load_variant(settings: WorkerSettings, attempt: Attempt, tell: TellProgress) -> LoadedModel:
    """Load what the settings name; the demo, built where it is missing, if they name nothing."""
    check_choice("backend", settings.backend, backend_names())
    check_choice("dtype", settings.dtype, DTYPES)
    device = resolve_device(settings.device)  # refuses a wrong one before anything is fetched
    torch.set_num_threads(resolve_num_threads(settings))
    asked = attempt.variant or settings.variant
    cache_dir, is_local = settings.cache_dir, settings.local_files_only
    if asked is None or settings.variant is None:
        demo = build_demo(cache_dir or default_cache_dir(), progress=partial(_tell_step, tell))
        asked, cache_dir, is_local = asked or demo.gptq_repo, demo.cache_dir, True
    tell("choosing the variant")
    trial = choose_variant(
        parse_spec(asked),
        settings,
        attempt,
        cache_dir=cache_dir,
        local_files_only=is_local,
        device=device,
    )
    tell("finding the files", about=trial.encode())
    token = settings.hub_token
    return load(
        parse_spec(trial.variant),
        device=device,
        dtype=settings.dtype,
        backend=settings.backend,
        excluded_backends=frozenset(attempt.excluded_backends),
        self_test=True,
        cache_dir=cache_dir,
        token=None if token is None else token.get_secret_value(),
        local_files_only=is_local,
        cpu_offload=settings.cpu_offload,
        progress=tell,
    )


def describe(
    loaded: LoadedModel, memory: MemoryReport | None, *, is_batch_invariant: bool
) -> ModelDescription:
    """Describe a loaded model."""
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
        device=provenance.device,
        is_batch_invariant=is_batch_invariant,
        model_type=config.model_type,
        vocab_size=getattr(config, "vocab_size", None),
        num_hidden_layers=getattr(config, "num_hidden_layers", None),
        defaults=loaded.generation,
        self_test=loaded.self_test,
        memory=memory,
    )


def _quantization_text(loaded: LoadedModel) -> str:
    if loaded.quantization is not None:
        return str(loaded.quantization)
    return "as Transformers reads it" if loaded.provenance.backend == "stock" else "none"


def _tell_step(tell: TellProgress, step: str) -> None:
    log.info("preparing the demo", step=step)
    tell(step)


def check_choice(name: str, asked: str, choices: Iterable[str]) -> None:
    """Raise SettingsError where a setting names none of its choices."""
    known = ("auto", *choices)
    if asked not in known:
        raise SettingsError(f"{name} is {asked!r}; choose one of {', '.join(known)}")


def resolve_device(asked: str) -> str:
    """Where to load: of several GPUs "auto" takes the emptiest, as the engine runs on one."""
    chosen = str(one_device(asked))
    if (num_gpus := torch.cuda.device_count()) > 1 and asked == "auto":
        log.info(
            "one GPU is used", device=chosen, of=num_gpus, reason="it has the most memory free"
        )
    return chosen


def resolve_num_threads(settings: WorkerSettings) -> int:
    """How many threads one operation on the CPU may take."""
    if settings.num_threads != "auto":
        return settings.num_threads
    # Two threads of one core share its arithmetic units, which matrix products keep busy.
    cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
    allowed = _container_cpus()
    return cores if allowed is None else max(1, min(cores, allowed))


def _container_cpus() -> int | None:
    """Return how many processors' time the control group may use; None without a limit."""
    try:
        quota, period = CGROUP_CPU_LIMIT.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) // int(period)


def resolve_engine_config(
    settings: WorkerSettings, loaded: LoadedModel, *, longest: int | None = None
) -> EngineConfig:
    """How long and how many sequences may be, in the memory that the weights left.

    longest: what "auto" may be at most, in tokens.

    How many may wait is the client's to decide (`engine.backlog`), which answers at once.
    """
    model = loaded.model
    kv_dtype = resolve_kv_dtype(model, resolve_asked_kv_dtype(settings))
    block_bytes = kv_block_bytes(model.config, BLOCK_SIZE, kv_dtype)
    asked_len = _asked_max_model_len(settings, model, longest)
    sequence_bytes = (-(-asked_len // BLOCK_SIZE) + 1) * block_bytes
    memory = resolve_kv_cache_bytes(settings, model.device, sequence_bytes)
    if longest is not None and settings.kv_cache_size == "auto":
        # Memory did not suffice for what "auto" is: the cache shrinks as the context does, or the
        # next attempt would fail as the last one.
        share = min(1.0, longest / _made_for(model))
        memory = min(memory, max(int(memory * share), sequence_bytes))
    max_model_len = _resolve_max_model_len(settings, asked_len, memory // block_bytes - 1)
    num_blocks = resolve_num_blocks(
        memory,
        block_bytes,
        max_model_len=max_model_len,
        max_num_seqs=settings.max_num_seqs,
        block_size=BLOCK_SIZE,
    )
    log.info(
        "engine sized",
        max_model_len=max_model_len,
        kv_cache_tokens=num_blocks * BLOCK_SIZE,
        kv_cache_bytes=num_blocks * block_bytes,
        max_num_seqs=settings.max_num_seqs,
    )
    return EngineConfig(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=resolve_max_num_batched_tokens(settings, model.device),
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        kv_dtype=kv_dtype,
        has_prefix_cache=settings.prefix_cache,
        num_speculative_tokens=settings.num_speculative_tokens,
        is_batch_invariant=settings.batch_invariant,
        enforce_eager=True if loaded.provenance.is_eager_only else None,
    )


def resolve_max_num_batched_tokens(settings: WorkerSettings, device: torch.device) -> int:
    """How many tokens a step may compute: what others wait for while a long prompt is read."""
    if settings.max_num_batched_tokens == "auto":
        chosen = CPU_BATCHED_TOKENS if device.type == "cpu" else CUDA_BATCHED_TOKENS
        return max(chosen, settings.max_num_seqs)
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        raise SettingsError(
            f"max_num_batched_tokens is {settings.max_num_batched_tokens} and max_num_seqs is"
            f" {settings.max_num_seqs}; a step computes at least one token of each sequence"
        )
    return settings.max_num_batched_tokens


def resolve_asked_kv_dtype(settings: WorkerSettings) -> KVDtype | None:
    """What keys and values shall be kept in; None where that follows from the device."""
    return None if settings.kv_cache_dtype == "auto" else KVDtype(settings.kv_cache_dtype)


def resolve_kv_cache_bytes(
    settings: WorkerSettings, device: torch.device, sequence_bytes: int
) -> int:
    """How much memory keys and values may take, once the weights are in place.

    sequence_bytes: what one sequence of full length takes.
    """
    if settings.kv_cache_size != "auto":
        return int(settings.kv_cache_size)
    free = free_bytes(device)
    if device.type != "cuda":
        return min(int(free * CPU_KV_SHARE), max(CPU_KV_BYTES, sequence_bytes))
    total = torch.cuda.get_device_properties(device).total_memory
    return max(0, int(free - (1 - settings.gpu_memory_utilization) * total))


def _asked_max_model_len(
    settings: WorkerSettings, model: PreTrainedModel, longest: int | None
) -> int:
    """Return how long a sequence shall be able to become: what the settings say, or the model."""
    made_for = _made_for(model)
    if settings.max_model_len == "auto":
        fixed = longest_with_fixed_rope(model.config) or made_for
        if fixed < made_for:
            log.warning(
                "context shortened to where positions keep their angles",
                made_for=made_for,
                now=fixed,
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
    log.warning("context shortened to fit the KV cache", made_for=asked_len, now=fitting_len)
    return fitting_len
