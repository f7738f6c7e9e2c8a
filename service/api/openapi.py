"""Puts the request bodies into /openapi.json: routes read them themselves, unseen by FastAPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.api.requests import StrictModel

_REF_TEMPLATE = "#/components/schemas/{model}"


def json_body(kind: type[StrictModel]) -> dict[str, Any]:
    """Return what a route's `openapi_extra` says of its body."""
    schema = {"$ref": _REF_TEMPLATE.format(model=kind.__name__)}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI, *kinds: type[StrictModel]) -> None:
    """Add the schemas that `json_body` refers to."""
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template=_REF_TEMPLATE
    )
    components = app.openapi().setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas["$defs"])
