"""GET /version: which Tetrad this is."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from service.api.endpoint import Endpoint
from service.api.responses import ModelResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


class ServerVersion(BaseModel):
    """Which version of this server answers."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="Tetrad's own.")


def version_endpoints() -> list[Endpoint]:
    """Return the endpoint."""
    answer = ServerVersion(version=version("tetrad"))

    async def get_version(_: Request) -> Response:
        """Say which version of this server answers."""
        return ModelResponse(answer)

    return [
        Endpoint(
            method="GET",
            path="/version",
            tag="Operations",
            handler=get_version,
            response=ServerVersion,
        )
    ]
