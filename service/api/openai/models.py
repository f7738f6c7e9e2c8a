"""GET /v1/models and /v1/models/{id}: what is served, and where it came from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from service.api.endpoint import Endpoint
from service.api.responses import JsonResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.served_model import ServedModel
    from service.variants.variant import VariantStatus


def model_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoints."""

    async def list_models(_: Request) -> Response:
        """List the variants, and whether they are loaded."""
        models = context.models
        data = [_describe(*models.find(status.name)) for status in models.statuses]
        return JsonResponse({"object": "list", "data": data})

    async def get_model(http_request: Request) -> Response:
        """Describe one variant; while it is loaded, with the full record of where it came from."""
        name = context.models.resolve(http_request.path_params["name"])
        status, model = context.models.find(name)
        report = status.self_test
        own: dict[str, object] = {} if report is None else {"self_test": dataclasses.asdict(report)}
        if status.live_check is not None:
            own["live_check"] = dataclasses.asdict(status.live_check)
        if model is None:
            return JsonResponse({**_describe(status, model), **own})
        if model.memory is not None:
            own["memory"] = msgspec.to_builtins(model.memory)
        own["chat_template"] = _describe_template(model)
        body = {**_describe(status, model), **own, "provenance": model.identity.record}
        return JsonResponse(body, headers=model.identity.headers)

    return [
        Endpoint(method="GET", path="/v1/models", tag="OpenAI", handler=list_models),
        # A path: names hold slashes, colons and at signs, percent-encoded or not.
        Endpoint(method="GET", path="/v1/models/{name:path}", tag="OpenAI", handler=get_model),
    ]


def _describe_template(model: ServedModel) -> dict[str, object]:
    template = model.chat_template
    return {
        "name": None if template is None else template.name,
        "source": None if template is None else template.origin.value,
        "findings": [dataclasses.asdict(finding) for finding in model.template_findings],
    }


def _describe(status: VariantStatus, model: ServedModel | None) -> dict[str, object]:
    return {
        "id": status.name,
        "object": "model",
        "created": status.created if model is None else model.created,
        "owned_by": "tetrad",
        "state": status.state.value,
        # A folder's path is nobody's business.
        "variant": None if status.variant.startswith(("/", ".", "~")) else status.variant,
        "degraded": status.degraded,
        "suspect": status.suspect,
        "max_model_len": None if model is None else model.engine.max_model_len,
    }
