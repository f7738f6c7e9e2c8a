"""/admin/models…: which variants are served, changed while the server runs.

Behind a key of its own; without one these routes do not exist. Loading and unloading take long, so
each route but `check` begins what it is asked for, answers 202, and the list tells how it goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog
from pydantic import Field

from service.api.endpoint import Access, Endpoint, Handler
from service.api.operations.answers import (
    IntegrityAnswer,
    ListedVariant,
    Removal,
    VariantList,
    VariantReport,
)
from service.api.request_bodies import read_request
from service.api.requests import MAX_NAME_LENGTH, ClosedModel
from service.api.responses import ModelResponse
from service.errors import InvalidFieldError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.answer_model import AnswerModel
    from service.api.context import ApiContext
    from service.team.keys import ApiKeys
    from service.variants.variant import ServedVariant, VariantStatus

log = structlog.get_logger(__name__)

ACCEPTED = 202
Body = TypeVar("Body", bound=ClosedModel)


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


class NamedModel(ClosedModel):
    """The body of routes that are about a variant that is served."""

    model: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="Its served name.")


class NewModel(ClosedModel):
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


def admin_endpoints(administration: Administration, context: ApiContext) -> list[Endpoint]:
    """Return the endpoints."""
    routes = AdminRoutes(administration, context)

    def endpoint(
        path: str,
        handler: Handler,
        body: type[ClosedModel],
        answer: type[AnswerModel] = VariantReport,
    ) -> Endpoint:
        return Endpoint(
            method="POST",
            path=f"/admin/models/{path}",
            tag="Administration",
            handler=handler,
            request=body,
            response=answer,
            success=ACCEPTED if answer is VariantReport else 200,
            access=Access.ADMIN,
        )

    return [
        Endpoint(
            method="GET",
            path="/admin/models",
            tag="Administration",
            handler=routes.list_variants,
            response=VariantList,
            access=Access.ADMIN,
        ),
        endpoint("load", routes.load, NewModel),
        endpoint("swap", routes.swap, NewModel),
        endpoint("drain", routes.drain, NamedModel),
        endpoint("unload", routes.unload, NamedModel),
        endpoint("remove", routes.remove, NamedModel, Removal),
        endpoint("check", routes.check, NamedModel, IntegrityAnswer),
    ]


class AdminRoutes:
    """One method a route; their docstrings are what /openapi.json says of them."""

    def __init__(self, administration: Administration, context: ApiContext) -> None:
        self._variants = administration.variants
        self._make_variant = administration.make_variant
        self._context = context

    async def list_variants(self, _: Request) -> Response:
        """List the variants: what each is doing, and why."""
        data = [
            ListedVariant(
                **_describe(status), role=role, failed_swap=self._variants.failed_swap(status.name)
            )
            for status, role in self._variants.roles()
        ]
        return ModelResponse(VariantList(data=data))

    async def load(self, http_request: Request) -> Response:
        """Load a variant: one more if `variant` is given, else one that is served already."""
        request = await self._read(http_request, NewModel)
        if request.variant is not None:
            self._variants.add(self._make(request))
        elif request.settings:
            raise InvalidFieldError(
                "settings: they are for a new variant, which `variant` names; swap one that"
                " is served",
                param="settings",
            )
        else:
            self._variants.require(request.model).load()
        return self._begun(request.model, "load")

    async def swap(self, http_request: Request) -> Response:
        """Load a variant beside the one of this name; it takes over once it serves."""
        request = await self._read(http_request, NewModel)
        self._variants.swap(self._make(request))
        return self._begun(request.model, "swap")

    async def drain(self, http_request: Request) -> Response:
        """Send a variant no new work; `load` lifts that."""
        name = await self._read_name(http_request)
        self._variants.require(name).drain()
        return self._begun(name, "drain")

    async def unload(self, http_request: Request) -> Response:
        """Drain a variant, then end its engine."""
        name = await self._read_name(http_request)
        self._variants.unload(name)
        return self._begun(name, "unload")

    async def remove(self, http_request: Request) -> Response:
        """Forget a variant that is not loaded."""
        name = await self._read_name(http_request)
        self._variants.remove(name)
        log.info("admin_request", action="remove", model=name)
        return ModelResponse(Removal(removed=name))

    async def check(self, http_request: Request) -> Response:
        """Check the engine's accounting: all that was handed out must be back where it is idle."""
        name = await self._read_name(http_request)
        report = await self._variants.require(name).require_served().engine.check_integrity()
        return ModelResponse(IntegrityAnswer(is_idle=report.is_idle, problem=report.problem))

    async def _read_name(self, http_request: Request) -> str:
        return (await self._read(http_request, NamedModel)).model

    async def _read(self, http_request: Request, kind: type[Body]) -> Body:
        return await read_request(http_request, kind, self._context)

    def _begun(self, name: str, action: str) -> Response:
        """Answer that what was asked for has begun."""
        log.info("admin_request", action=action, model=name)
        status = self._variants.require(name).status
        return ModelResponse(VariantReport(**_describe(status)), ACCEPTED)

    def _make(self, request: NewModel) -> ServedVariant:
        if request.variant is None:
            raise InvalidFieldError("variant: required, and missing", param="variant")
        own = {"variant": request.variant, "served_model_name": request.model}
        try:
            return self._make_variant({**request.settings, **own})
        except SettingsError as error:
            raise InvalidFieldError(str(error), param="settings") from error


def _describe(status: VariantStatus) -> dict[str, Any]:
    return {
        "model": status.name,
        "variant": status.variant,
        "state": status.state,
        "step": status.phase,
        "percent": status.percent,
        "reason": status.reason,
        "degraded": status.degraded,
        "suspect": status.suspect,
        "restarts": status.num_restarts,
        "open_requests": status.num_requests,
        "pid": status.pid,
        "statistics": status.statistics,
        "live_check": status.live_check,
    }
