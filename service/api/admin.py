"""/admin/models…: which variants are served, changed while the server runs.

Behind a key of its own; without one these routes do not exist. Loading and unloading take long, so
each route but `check` begins what it is asked for, answers 202, and the list tells how it goes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import structlog
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation
from starlette.responses import Response

from service.api.error_responses import JsonResponse
from service.api.openapi import json_body
from service.api.request_bodies import read_request
from service.api.requests import MAX_NAME_LENGTH, StrictModel
from service.errors import InvalidFieldError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service.api.context import ApiContext
    from service.team.keys import ApiKeys
    from service.variants.variant import ServedVariant, VariantStatus

log = structlog.get_logger(__name__)

ACCEPTED = 202


class VariantRegistry(Protocol):
    """What can be done about the variants; `service.variants.supervisor.Supervisor` does it."""

    def roles(self) -> list[tuple[VariantStatus, str]]:
        """How each variant stands, and its part in a swap."""

    def failed_swap(self, name: str) -> str | None:
        """Why the last swap by this name failed."""

    def require(self, name: str) -> ServedVariant:
        """Return a variant, or raise ModelNotFoundError."""

    def add(self, variant: ServedVariant) -> None:
        """Serve one more."""

    def swap(self, variant: ServedVariant) -> None:
        """Load one beside the one of the same name, and let it take over."""

    def unload(self, name: str) -> None:
        """Drain one, then unload it."""

    def remove(self, name: str) -> None:
        """Forget one that is not loaded."""


@dataclass(frozen=True, slots=True)
class Administration:
    """What the routes work with."""

    keys: ApiKeys
    variants: VariantRegistry
    # Makes a variant of settings as in the file's `also`; raises SettingsError.
    make_variant: Callable[[Mapping[str, object]], ServedVariant]


class NamedModel(StrictModel):
    """The body of routes that are about a variant that is served."""

    model: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="Its served name.")


class NewModel(StrictModel):
    """The body of routes that bring a variant in."""

    model: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="Its served name.")
    variant: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="`repo`, `repo:branch`, `repo@commit` or a folder.",
    )
    settings: dict[str, object] = Field(
        {}, description="Settings of its own, as in the configuration file's `also`."
    )


def admin_router(administration: Administration, context: ApiContext) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/admin/models")
    variants = administration.variants

    async def read_name(http_request: Request) -> str:
        request = await read_request(
            http_request,
            NamedModel,
            limits=context.limits,
            max_body_bytes=context.max_body_bytes,
        )
        return request.model

    async def read_new(http_request: Request) -> NewModel:
        return await read_request(
            http_request, NewModel, limits=context.limits, max_body_bytes=context.max_body_bytes
        )

    def begun(name: str, action: str) -> Response:
        log.info("admin_request", action=action, model=name)
        return JsonResponse(describe_status(variants.require(name).status), ACCEPTED)

    @router.get("", response_class=Response)
    async def list_variants() -> Response:
        """List the variants: what each is doing, and why."""
        data = [
            {
                **describe_status(status),
                "role": role,
                "failed_swap": variants.failed_swap(status.name),
            }
            for status, role in variants.roles()
        ]
        return JsonResponse({"data": data})

    @router.post("/load", response_class=Response, openapi_extra=json_body(NewModel))
    async def load(http_request: Request) -> Response:
        """Load a variant: one more if `variant` is given, else one that is served already."""
        request = await read_new(http_request)
        if request.variant is None:
            if request.settings:
                raise InvalidFieldError(
                    "settings: they are for a new variant, which `variant` names; swap one that"
                    " is served",
                    param="settings",
                )
            variants.require(request.model).load()
        else:
            variants.add(make(request))
        return begun(request.model, "load")

    @router.post("/swap", response_class=Response, openapi_extra=json_body(NewModel))
    async def swap(http_request: Request) -> Response:
        """Load a variant beside the one of this name; it takes over once it serves."""
        request = await read_new(http_request)
        variants.swap(make(request))
        return begun(request.model, "swap")

    @router.post("/drain", response_class=Response, openapi_extra=json_body(NamedModel))
    async def drain(http_request: Request) -> Response:
        """Send a variant no new work; `load` lifts that."""
        name = await read_name(http_request)
        variants.require(name).drain()
        return begun(name, "drain")

    @router.post("/unload", response_class=Response, openapi_extra=json_body(NamedModel))
    async def unload(http_request: Request) -> Response:
        """Drain a variant, then end its engine."""
        name = await read_name(http_request)
        variants.unload(name)
        return begun(name, "unload")

    @router.post("/remove", response_class=Response, openapi_extra=json_body(NamedModel))
    async def remove(http_request: Request) -> Response:
        """Forget a variant that is not loaded."""
        name = await read_name(http_request)
        variants.remove(name)
        log.info("admin_request", action="remove", model=name)
        return JsonResponse({"removed": name})

    @router.post("/check", response_class=Response, openapi_extra=json_body(NamedModel))
    async def check(http_request: Request) -> Response:
        """Check the engine's books: all that was handed out must be back where it is idle."""
        name = await read_name(http_request)
        report = await variants.require(name).require_served().engine.check_integrity()
        return JsonResponse({"is_idle": report.is_idle, "problem": report.problem})

    def make(request: NewModel) -> ServedVariant:
        if request.variant is None:
            raise InvalidFieldError("variant: required, and missing", param="variant")
        own = {"variant": request.variant, "served_model_name": request.model}
        try:
            return administration.make_variant({**request.settings, **own})
        except SettingsError as error:
            raise InvalidFieldError(str(error), param="settings") from error

    return router


def describe_status(status: VariantStatus) -> dict[str, object]:
    """Describe a variant for its administrator."""
    return {
        "model": status.name,
        "variant": status.variant,
        "state": status.state.value,
        "step": status.phase,
        "percent": status.percent,
        "reason": status.reason,
        "degraded": status.degraded,
        "restarts": status.num_restarts,
        "open_requests": status.num_requests,
        "pid": status.pid,
        "statistics": None if status.statistics is None else asdict(status.statistics),
    }
