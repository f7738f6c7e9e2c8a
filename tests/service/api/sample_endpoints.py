"""Endpoints of every kind, for what is made from their list."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, PlainSerializer

from service.api.endpoint import Access, Endpoint, ErrorShape
from service.api.openai.chat import ChatRequest
from service.api.openai.completion_request import CompletionRequest
from service.api.operations.admin import NamedModel


class Answer(BaseModel):
    """What is answered."""

    id: str = Field(description="Its <name>.")
    count: Annotated[int, PlainSerializer(str, return_type=str)] = Field(0, ge=0)


class Chunk(BaseModel):
    """A piece of it."""

    text: str


class Readiness(BaseModel):
    """How the server stands."""

    phase: Literal["serving", "loading"]


class TgiParameters(BaseModel):
    """How the text goes on."""

    temperature: float = Field(1.0, gt=0, le=2, description="0 | 1: <b>how</b> `wild`.")
    stop: list[str] = Field([], max_length=4)


class TgiRequest(BaseModel):
    """A text to go on from."""

    inputs: str = Field(min_length=1, description="The text.")
    parameters: TgiParameters | None = None


async def create_chat_completion(request):
    """Answer a dialogue.

    Up to the end of the context where max_tokens is silent. Not <script>alert(1)</script>.
    """


async def create_completion(request):
    """Go on from a prompt."""


async def get_model(request):
    """Describe one variant."""


async def list_models(request):
    """List the variants."""


async def ready(request):
    """Answer 200 while requests are served."""


async def metrics(request):
    """Count."""


async def generate(request):
    """Generate a text, whole or as a stream."""


async def load(request):
    """Load a variant."""


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/chat/completions", other_paths=("/chat/completions",),
        tag="OpenAI", handler=create_chat_completion, request=ChatRequest, response=Answer,
        chunk=Chunk,
    ),
    Endpoint(
        method="POST", path="/v1/completions", tag="OpenAI", handler=create_completion,
        request=CompletionRequest, response=Answer, chunk=Chunk, statuses=(501,), infills=True,
    ),
    Endpoint(method="GET", path="/v1/models", tag="OpenAI", handler=list_models, response=Answer),
    Endpoint(
        method="GET", path="/v1/models/{name:path}", other_paths=("/models/{name:path}",),
        tag="OpenAI", handler=get_model, response=Answer,
    ),
    Endpoint(
        method="GET", path="/health/ready", other_paths=("/health", "/ping"), tag="Operations",
        handler=ready, response=Readiness, other_answers={503: Readiness}, access=Access.OPEN,
    ),
    Endpoint(
        method="GET", path="/metrics", tag="Operations", handler=metrics, media_type="text/plain",
    ),
    Endpoint(
        method="POST", path="/", tag="TGI", handler=generate, request=TgiRequest,
        list_response=Answer, chunk=Chunk, errors=ErrorShape.TGI, statuses=(424,),
    ),
    Endpoint(
        method="POST", path="/admin/models/load", tag="Administration", handler=load,
        request=NamedModel, response=Answer, success=202, access=Access.ADMIN, statuses=(507,),
    ),
]  # fmt: skip
