"""POST /apply-template: a dialogue as the text that the model will see, in llama.cpp's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.dialogues import DialogueRequest, Messages, render_text, unread
from service.api.endpoint import Endpoint
from service.api.request_bodies import read_request, report_ignored
from service.api.requests import Forbidden, Name
from service.api.respond import acquire
from service.api.responses import model_response

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext


class TemplateRequest(DialogueRequest):
    """The body of POST /apply-template."""

    model: Name = Field(
        None, description="A served name. Where one variant is served, silence means it."
    )
    messages: Messages = Field(description="A dialogue, oldest turn first.")
    chat_template: Forbidden = Field(None, description="Never taken from a request.")


class AppliedTemplate(AnswerModel):
    """A dialogue as text."""

    prompt: str = Field(
        description="For people: special pieces that somebody typed look like the template's own,"
        " and sent back as a prompt they would be. /v1/chat/completions keeps them apart."
    )


def template_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def apply_template(http_request: Request) -> Response:
        """Render a dialogue as text, up to where the assistant speaks next."""
        context.lifecycle.require_open()
        request = await read_request(http_request, TemplateRequest, context)
        model = await acquire(http_request, request.model, context)
        report_ignored(http_request.scope, unread(request, model), context.limits)
        answer = AppliedTemplate(prompt=await render_text(request, model))
        return await model_response(answer, model.identity.headers)

    return [
        Endpoint(
            method="POST",
            path="/apply-template",
            tag="Tokens",
            handler=apply_template,
            request=TemplateRequest,
            response=AppliedTemplate,
        )
    ]
