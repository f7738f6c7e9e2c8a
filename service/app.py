"""Puts the API process together: settings in, a server that keeps its variants running and answers.

No weights and nothing that computes with them come into this process, but with `in_process`; see
`service.worker.build` for the engine's side.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import structlog
from pydantic import ValidationError

from engine.transport import sockets
from loaders.errors import InvalidSpecError
from loaders.repository.spec import parse_spec
from service.api.application import create_app
from service.api.context import ApiContext
from service.api.event_stream import StreamTiming
from service.api.inner_calls import InnerCalls
from service.api.large_bodies import LargeBodies
from service.api.operations.admin import Administration
from service.api.requests import RequestLimits
from service.batches.beside import BatchesBeside
from service.batches.keeper import BatchKeeper, KeeperLimits
from service.batches.runner import RunLimits
from service.errors import SettingsError
from service.logs import set_up_logs
from service.observation.line_writer import LineWriter
from service.observation.observation import Observation
from service.observation.request_log import RequestLog
from service.server.connections import Connections
from service.server.descriptors import resolve_max_connections
from service.server.freed_memory import keep_little
from service.server.front import Front
from service.server.lifecycle import Lifecycle
from service.server.limits import ConnectionLimits
from service.server.tls import make_tls
from service.server.uvicorn_server import Server, listen, url_of
from service.settings import (
    DEMO_NAME,
    Settings,
    VariantEntry,
    VariantSettings,
    WorkerSettings,
    describe_errors,
    read_admin_key,
    read_key,
    read_metrics_token,
    unknown_variables,
    unless_auto,
)
from service.team.keys import ApiKeys
from service.text.errors import TemplateSettingError
from service.text.template_choice import check_setting
from service.variants.fallback import FallbackPolicy
from service.variants.handles import EngineInThread, EngineProcess
from service.variants.loaded import LoadedVariant
from service.variants.supervisor import Supervisor
from service.variants.variant import ServedVariant, VariantRules, names_of
from service.worker.process import build

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.variants.handles import OnProgress
    from service.worker_protocol.load_attempt import LoadRequest

log = structlog.get_logger(__name__)

SWITCH_INTERVAL_S = 0.0005
WAITING_LINES = 8  # of batches, beyond those that run


def serve(settings: Settings) -> NoReturn:
    """Serve until told to stop; end the process with the exit code.

    Raises SettingsError and BindError before anything is loaded.
    """
    keep_little()
    writer = LineWriter(sys.stderr)
    set_up_logs(settings, writer=writer)
    key, admin_key = read_key(settings), read_admin_key(settings)
    metrics_token = read_metrics_token(settings)
    variants = make_variants(settings)
    for name in unknown_variables():
        log.warning("unknown_variable", name=name)
    # Whoever reads a text in Python's own code is asked to let the event loop in after so long, at
    # each of its calls into the system; of Python's 5 ms a crowd's refusals would wait for seconds.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    sockets.prepare()
    front = make_front(settings, num_variants=len(variants))
    listener = listen(settings.host, settings.port, stall_limit_s=settings.stall_limit_s)
    log.info(
        "listening",
        url=url_of(listener, front.scheme),
        key="asked for" if key else "none: loopback only",
    )
    supervisor = Supervisor(
        variants, drain_limit_s=settings.drain_limit_s, load_wait_s=settings.load_wait_s
    )
    lifecycle = Lifecycle(supervisor)
    observation = observe(settings, writer, front.connections)
    keeper = batch_keeper(settings)
    context = api_context(settings, lifecycle, supervisor, observation, keeper)
    app = create_app(
        context,
        ApiKeys(key) if key else None,
        administration(settings, admin_key, supervisor) if admin_key else None,
        cors_origins=settings.cors_origins,
        metrics_keys=ApiKeys(metrics_token, "metrics") if metrics_token else None,
        root_path=settings.root_path or "",
    )
    engines = BatchesBeside(supervisor, keeper, InnerCalls(app), lifecycle.until_ending)
    server = Server(app, lifecycle, engines, drain_limit_s=settings.drain_limit_s, front=front)
    server.run(listener)


def make_front(settings: Settings, num_variants: int = 1) -> Front:
    """Return how clients reach the application. Raises SettingsError."""
    certificate = settings.tls_certificate
    limits = ConnectionLimits(
        first_byte_timeout_s=settings.first_byte_timeout_s,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        min_body_rate=settings.min_body_rate,
        idle_timeout_s=settings.idle_timeout_s,
        stall_limit_s=settings.stall_limit_s,
        max_headers=settings.max_headers,
        max_header_size=settings.max_header_size,
        max_connections=resolve_max_connections(settings.max_connections, num_variants),
    )
    return Front(
        connections=Connections(limits),
        tls=None if certificate is None else make_tls(certificate, settings.tls_key),
        root_path=settings.root_path or "",
        trusted_proxies=settings.trusted_proxies,
    )


def observe(settings: Settings, writer: LineWriter, connections: Connections) -> Observation:
    """Return what counts requests, and writes their lines where the settings ask for it."""
    log = RequestLog(
        writer.write,
        as_json=settings.log_format == "json",
        slow_s=settings.slow_request_s,
        only_slow=settings.log_level == "warning",
    )
    is_logged = settings.log_requests and settings.log_level != "error"
    return Observation(
        log if is_logged else None, connections, num_lines_dropped=lambda: writer.num_dropped
    )


def api_context(
    settings: Settings,
    lifecycle: Lifecycle,
    supervisor: Supervisor,
    observation: Observation | None = None,
    keeper: BatchKeeper | None = None,
) -> ApiContext:
    """Return what the routes work with; observation: what counts requests, if anything shall.

    keeper: of files and batches; without one they are not offered.
    """
    return ApiContext(
        lifecycle=lifecycle,
        models=supervisor,
        limits=RequestLimits(
            max_choices=settings.max_choices,
            max_prompts=settings.max_prompts,
            max_messages=settings.max_messages,
            max_stop_strings=settings.max_stop_strings,
            max_stop_bytes=settings.max_stop_bytes,
            max_body_parts=settings.max_body_parts,
            unknown_fields=settings.unknown_fields,
            may_set_priority=settings.allow_priority,
        ),
        timing=StreamTiming(
            keep_alive_interval_s=settings.keep_alive_interval_s,
            stall_limit_s=settings.stall_limit_s,
        ),
        max_body_bytes=settings.max_body_size,
        bodies=LargeBodies.for_size(settings.max_body_size),
        observation=observation or Observation(),
        batches=keeper,
    )


def batch_keeper(settings: Settings) -> BatchKeeper:
    """Return what keeps files and batches; opens nothing."""
    running = settings.max_batch_running
    limits = KeeperLimits(
        max_file_bytes=settings.max_file_size,
        max_files_bytes=settings.max_files_size,
        max_files_bytes_per_caller=_share(
            settings, settings.max_files_size_per_caller, settings.max_files_size
        ),
        max_open_batches=settings.max_open_batches,
        max_open_batches_per_caller=_share(
            settings, settings.max_open_batches_per_caller, settings.max_open_batches
        ),
        run=RunLimits(
            max_at_once=settings.max_num_seqs + WAITING_LINES if running == "auto" else running,
            max_lines=settings.max_batch_requests,
            max_body_bytes=settings.max_body_size,
            unknown_fields=settings.unknown_fields,
        ),
    )
    return BatchKeeper(settings.batches_folder, limits)


def _share(settings: Settings, share: int | Literal["auto"], whole: int) -> int:
    """Return how much of a whole one caller may have."""
    if share != "auto":
        return share
    has_key = settings.api_key is not None or settings.api_key_file is not None
    # Without keys all callers are one, from whom nobody is to be kept.
    return -(-whole // 2) if has_key else whole


def administration(settings: Settings, key: str, supervisor: Supervisor) -> Administration:
    """Return what the routes under /admin/ work with."""

    def make(entry: Mapping[str, object]) -> ServedVariant:
        fields: dict[str, Any] = dict(entry)
        try:
            own = WorkerSettings(**settings.inherited(VariantEntry(**fields)))
        except ValidationError as error:
            raise SettingsError(describe_errors(error)) from None
        return make_variant(own, in_process=settings.in_process)

    return Administration(ApiKeys(key, "admin"), supervisor, make)


def make_variants(settings: Settings) -> list[ServedVariant]:
    """Make every variant that the settings name; refuse at once what cannot be right.

    Raises SettingsError.
    """
    variants = [make_variant(own, in_process=settings.in_process) for own in settings.variants()]
    taken: dict[str, ServedVariant] = {}
    for variant in variants:
        for name in names_of(variant):
            if taken.get(name) is variant:
                raise SettingsError(
                    f"{variant.name!r} has the name {name!r} twice; see its aliases"
                )
            if name in taken:
                raise SettingsError(
                    f"two variants are served as {name!r}; name one of them otherwise"
                )
            taken[name] = variant
    return variants


def make_variant(settings: WorkerSettings, *, in_process: bool) -> ServedVariant:
    """Make one variant, without starting anything. Raises SettingsError."""
    name = resolve_served_name(settings)
    if settings.chat_template is not None:
        try:
            check_setting(settings.chat_template)
        except TemplateSettingError as error:
            raise SettingsError(str(error)) from error
    start = partial(start_thread if in_process else EngineProcess.start, settings)
    rules = VariantRules(
        is_on_demand=settings.on_demand,
        is_required=settings.required,
        idle_unload_s=settings.idle_unload_s,
        max_restarts=settings.max_restarts,
        aliases=tuple(settings.aliases),
    )
    source = LoadedVariant(
        name,
        settings.variant or DEMO_NAME,
        FallbackPolicy(settings),
        start,
        chat_template=settings.chat_template,
        infill_order=unless_auto(settings.infill_order),
    )
    return ServedVariant(name, source, rules)


async def start_thread(
    settings: WorkerSettings, load_request: LoadRequest, on_progress: OnProgress
) -> EngineInThread:
    """Start an engine in a thread of this process."""
    return EngineInThread(settings, on_progress, partial(build, settings, load_request))


def resolve_served_name(settings: VariantSettings) -> str:
    """What clients call the variant: what the operator calls it, without the path of a folder.

    Raises SettingsError where the variant's own name cannot be read.
    """
    if settings.variant is None:
        return settings.served_model_name or DEMO_NAME
    try:
        spec = parse_spec(settings.variant)
    except InvalidSpecError as error:
        raise SettingsError(f"variant: {error}") from error
    if settings.served_model_name is not None:
        return settings.served_model_name
    if spec.folder is None:
        return settings.variant.strip()
    return f"{spec.repo}:{spec.revision}" if spec.revision else spec.repo
