"""Puts the API process together: settings in, a server that loads its model and answers.

The one place that knows the loaders, the engine and the web application at once. Whatever is
"auto" in the settings is answered here.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import structlog
import torch

from engine.client import EngineClient
from engine.config import EngineConfig, KVDtype
from engine.core import Engine
from engine.kv_cache import kv_block_bytes, resolve_kv_dtype, resolve_num_blocks
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.errors import BackendError, InvalidSpecError
from loaders.kernels.resolve import backend_names
from loaders.load import DTYPES, LoadedModel, load, resolve_device_map
from loaders.memory import free_bytes
from loaders.spec import VariantSpec, parse_spec
from service.api.application import create_app
from service.api.context import ApiContext
from service.api.event_stream import StreamTiming
from service.api.requests import RequestLimits
from service.errors import SettingsError
from service.lifecycle import Lifecycle
from service.logs import set_up_logs
from service.served_model import Identity, ServedModel
from service.server import Server, listen, url_of
from service.settings import Settings, read_key, unknown_variables
from service.team.keys import KeyRing
from service.text.errors import ChatNotSupportedError
from service.text.facts import read_facts
from service.text.templates import ChatTemplate, resolve_chat_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedModel

log = structlog.get_logger(__name__)

BLOCK_SIZE = 16
CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
# On a CPU other programs live in the same memory, and the cache is filled with zeros at the start
# (2 GiB take about a second): no more than this, unless one sequence of full length needs it.
CPU_KV_BYTES = 2 * 1024**3
CPU_KV_SHARE = 0.5  # of what is free, in any case


# Half a second's reading on two cores, some tens of milliseconds on a GPU.
CPU_BATCHED_TOKENS = 512
CUDA_BATCHED_TOKENS = 2048

DEMO_NAME = "demo"


def serve(settings: Settings) -> int:
    """Serve until told to stop; return the exit code.

    Raises SettingsError and BindError before anything is loaded.
    """
    set_up_logs(settings)
    key = read_key(settings)
    load_model = resolve_loader(settings)
    for name in unknown_variables():
        log.warning("unknown variable", name=name)
    listener = listen(settings.host, settings.port, stall_limit_s=settings.stall_limit_s)
    log.info("listening", url=url_of(listener), key="asked for" if key else "none: loopback only")
    lifecycle = Lifecycle()
    app = create_app(api_context(settings, lifecycle), KeyRing(key) if key else None)
    return Server(app, lifecycle, load=load_model, drain_limit_s=settings.drain_limit_s).run(
        listener
    )


def resolve_loader(settings: Settings) -> Callable[[], ServedModel]:
    """What loads the model; names that cannot be right are refused here, before anything is."""
    _check_choice("backend", settings.backend, backend_names())
    _check_choice("dtype", settings.dtype, DTYPES)
    try:
        resolve_device_map(settings.device)
    except BackendError as error:
        raise SettingsError(str(error)) from error
    if settings.variant is None:
        return lambda: load_demo(settings)
    try:
        spec = parse_spec(settings.variant)
    except InvalidSpecError as error:
        raise SettingsError(f"variant: {error}") from error
    return lambda: load_served_model(settings, spec)


def _check_choice(name: str, asked: str, choices: Iterable[str]) -> None:
    known = ("auto", *choices)
    if asked not in known:
        raise SettingsError(f"{name} is {asked!r}; choose one of {', '.join(known)}")


def load_demo(settings: Settings) -> ServedModel:
    """Build the demo where it is missing, and load it under a short name."""
    log.info("no variant was named: serving the demo")
    demo = build_demo(
        settings.cache_dir or default_cache_dir(),
        progress=lambda step: log.info("preparing the demo", step=step),
    )
    own = {
        "served_model_name": settings.served_model_name or DEMO_NAME,
        "cache_dir": demo.cache_dir,
        "local_files_only": True,  # it is on no hub
    }
    return load_served_model(settings.model_copy(update=own), parse_spec(demo.default_spec))


def api_context(settings: Settings, lifecycle: Lifecycle) -> ApiContext:
    """Return what the routes work with."""
    return ApiContext(
        lifecycle=lifecycle,
        limits=RequestLimits(
            max_choices=settings.max_choices,
            max_prompts=settings.max_prompts,
            max_messages=settings.max_messages,
            max_stop_strings=settings.max_stop_strings,
            max_stop_bytes=settings.max_stop_bytes,
        ),
        timing=StreamTiming(
            keep_alive_interval_s=settings.keep_alive_interval_s,
            stall_limit_s=settings.stall_limit_s,
        ),
        max_body_bytes=settings.max_body_size,
    )


def load_served_model(settings: Settings, spec: VariantSpec) -> ServedModel:
    """Load a variant, start its engine, and return both as the API sees them."""
    torch.set_num_threads(resolve_num_threads(settings))
    token = settings.hub_token
    loaded = load(
        spec,
        device=resolve_device(settings.device),
        dtype=settings.dtype,
        backend=settings.backend,
        cache_dir=settings.cache_dir,
        token=None if token is None else token.get_secret_value(),
        local_files_only=settings.local_files_only,
    )
    engine = Engine(loaded.model, resolve_engine_config(settings, loaded))
    template, refusal = _find_chat_template(loaded)
    client = EngineClient(engine)
    client.start()
    turn_ends = frozenset() if template is None else template.stop_token_ids
    return ServedModel(
        name=resolve_served_name(settings, spec),
        created=int(time.time()),
        engine=client,
        tokenizer=loaded.tokenizer,
        chat_template=template,
        chat_refusal=refusal,
        defaults=loaded.generation,
        stop_token_ids=loaded.generation.stop_token_ids | turn_ends,
        identity=identity_of(loaded, template, is_batch_invariant=settings.batch_invariant),
    )


def resolve_device(asked: str) -> str:
    """Where to load: of several GPUs "auto" takes the emptiest, as the engine runs on one."""
    num_gpus = torch.cuda.device_count()
    if asked != "auto" or num_gpus < 2:
        return asked
    free = [free_bytes(torch.device("cuda", index)) for index in range(num_gpus)]
    chosen = f"cuda:{free.index(max(free))}"
    log.info("one GPU is used", device=chosen, of=num_gpus, reason="it has the most memory free")
    return chosen


def resolve_served_name(settings: Settings, spec: VariantSpec) -> str:
    """What clients call the variant: what the operator calls it, without the path of a folder."""
    if settings.served_model_name is not None:
        return settings.served_model_name
    if spec.folder is None and settings.variant is not None:
        return settings.variant.strip()
    return f"{spec.repo}:{spec.revision}" if spec.revision else spec.repo


def resolve_num_threads(settings: Settings) -> int:
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


def resolve_engine_config(settings: Settings, loaded: LoadedModel) -> EngineConfig:
    """How long and how many sequences may be, in the memory that the weights left."""
    model = loaded.model
    kv_dtype = resolve_kv_dtype(model, resolve_asked_kv_dtype(settings))
    block_bytes = kv_block_bytes(model.config, BLOCK_SIZE, kv_dtype)
    asked_len = _asked_max_model_len(settings, model)
    sequence_bytes = (-(-asked_len // BLOCK_SIZE) + 1) * block_bytes
    memory = resolve_kv_cache_bytes(settings, model.device, sequence_bytes)
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
        max_queued_seqs=settings.max_queued_seqs,
        max_queued_tokens=None
        if settings.max_queued_tokens == "auto"
        else settings.max_queued_tokens,
        max_queue_wait_s=settings.max_queue_wait_s
        if settings.max_queued_tokens == "auto"
        else None,
        num_speculative_tokens=settings.num_speculative_tokens,
        is_batch_invariant=settings.batch_invariant,
    )


def resolve_max_num_batched_tokens(settings: Settings, device: torch.device) -> int:
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


def resolve_asked_kv_dtype(settings: Settings) -> KVDtype | None:
    """What keys and values shall be kept in; None where that follows from the device."""
    return None if settings.kv_cache_dtype == "auto" else KVDtype(settings.kv_cache_dtype)


def resolve_kv_cache_bytes(settings: Settings, device: torch.device, sequence_bytes: int) -> int:
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


def _asked_max_model_len(settings: Settings, model: PreTrainedModel) -> int:
    """Return how long a sequence shall be able to become: what the settings say, or the model."""
    made_for = int(model.config.get_text_config(decoder=True).max_position_embeddings)
    if settings.max_model_len == "auto":
        return made_for
    if settings.max_model_len > made_for:
        raise SettingsError(
            f"max_model_len is {settings.max_model_len}; this model was made for {made_for} tokens"
        )
    return settings.max_model_len


def _resolve_max_model_len(settings: Settings, asked_len: int, num_fitting_blocks: int) -> int:
    """How long a sequence may become; "auto" gives way where memory is short, a number does not."""
    fitting_len = num_fitting_blocks * BLOCK_SIZE
    if settings.max_model_len != "auto" or fitting_len >= asked_len or num_fitting_blocks < 1:
        return asked_len
    log.warning("context shortened to fit the KV cache", made_for=asked_len, now=fitting_len)
    return fitting_len


def _find_chat_template(loaded: LoadedModel) -> tuple[ChatTemplate | None, str | None]:
    """Return the variant's template, or why it has none."""
    provenance = loaded.provenance
    facts = read_facts(provenance.folder, provenance.repo, loaded.model.config, loaded.tokenizer)
    try:
        template = resolve_chat_template(loaded.tokenizer, facts)
    except ChatNotSupportedError as error:
        log.info("no chat", reason=str(error))
        return None, str(error)
    log.info("chat template", name=template.name)
    return template, None


def identity_of(
    loaded: LoadedModel, template: ChatTemplate | None, *, is_batch_invariant: bool
) -> Identity:
    """Return where answers come from; the fingerprint covers all of it but where it lies."""
    provenance = loaded.provenance
    quantization = "none" if loaded.quantization is None else str(loaded.quantization)
    packages = ("tetrad", "torch", "transformers", "tokenizers")
    record: dict[str, object] = {
        "repo": provenance.repo,
        "revision": provenance.revision,
        "commit": provenance.commit,
        "quantization": quantization,
        "kernel": provenance.backend,
        "dtype": provenance.dtype,
        "device": provenance.device,
        "batch_invariant": is_batch_invariant,
        "chat_template": None if template is None else template.name,
        "versions": {package: version(package) for package in packages},
    }
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return Identity(
        revision=provenance.commit or provenance.revision or "local folder",
        quantization=quantization,
        kernel=provenance.backend,
        fingerprint=f"fp_{digest[:12]}",
        record=record,
    )
