"""What one endpoint is: its paths, its models, its errors and who answers it.

One declaration is what the routes, the document at /openapi.json, the tables of docs/api.md and the
rule of keys are made from, so that none of them can forget an endpoint.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response

JSON, FORM = "application/json", "multipart/form-data"
_API_PREFIX = "/v1"
Handler: TypeAlias = "Callable[[Request], Awaitable[Response]]"


class Access(enum.Enum):
    """Whose key opens an endpoint."""

    OPEN = "open"  # none is asked for
    METRICS = "metrics"  # a caller's, or a token for scrapes alone
    CALLER = "caller"
    ADMIN = "admin"


class ErrorShape(enum.Enum):
    """In which server's words an endpoint tells its errors."""

    OPENAI = "openai"
    TGI = "tgi"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One thing that clients can ask for; its handler's docstring describes it."""

    method: str  # GET (HEAD comes with it), POST or DELETE
    path: str  # as in "/v1/models/{name:path}"
    tag: str  # whose API it belongs to, as in "OpenAI" or "llama.cpp"
    handler: Handler
    other_paths: tuple[str, ...] = ()  # the same under other names
    query: Mapping[str, str] = field(default_factory=dict)  # what may stand in it, and its meaning
    request: type[BaseModel] | None = None  # of the body
    request_type: str = JSON  # the body's media type
    response: type[BaseModel] | None = None  # of the answer; None where it is no JSON
    list_response: type[BaseModel] | None = None  # of each item, where the answer is a list
    chunk: type[BaseModel] | None = None  # of each event where the answer may be a stream
    statuses: tuple[int, ...] = ()  # what it may answer beside 200 and what every endpoint may
    # What it answers with other statuses, where that is no error's body.
    other_answers: Mapping[int, type[BaseModel]] = field(default_factory=dict)
    success: int = 200
    media_type: str = "application/json"  # of the answer
    takes_room: bool = False  # in the queue: it generates, so where that is full it is refused
    infills: bool = False  # text around a gap may be cut, which a header tells
    access: Access = Access.CALLER
    errors: ErrorShape = ErrorShape.OPENAI

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path it is reached by: what callers use, with /v1 and without."""
        own = (self.path, *self.other_paths)
        if self.access is not Access.CALLER or "/" in own:
            return own
        return tuple(dict.fromkeys(path for one in own for path in _both_ways(one)))

    @property
    def name(self) -> str:
        """A name of its own, for documents."""
        name: str = getattr(self.handler, "__name__", self.path)
        return name

    @property
    def description(self) -> str:
        """What it does, in words."""
        return (self.handler.__doc__ or "").strip()


def _both_ways(path: str) -> tuple[str, str]:
    """Return a path with and without /v1: clients differ in what they take for the base."""
    if path.startswith(f"{_API_PREFIX}/"):
        return path, path.removeprefix(_API_PREFIX)
    return path, _API_PREFIX + path
