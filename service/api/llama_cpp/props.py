"""GET /props: what llama.cpp's clients ask of a server before they use it.

Only what is true here. There are no slots, so neither their number nor `GET /slots`; a model's path
is nobody's business.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.endpoint import Endpoint
from service.api.llama_cpp.answer_models import SamplingSettings
from service.api.llama_cpp.answers import sampling_settings
from service.api.responses import ModelResponse
from service.errors import UnavailableError
from service.server.lifecycle import RETRY_AFTER_S
from service.serving.sampling import SamplingOptions, resolve_sampling

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.served_model import ServedModel


class DefaultSettings(AnswerModel):
    """What a request gets that says nothing."""

    n_ctx: int = Field(description="Most tokens of a prompt and its answer together.")
    params: SamplingSettings


class Modalities(AnswerModel):
    """What a prompt may hold beside text."""

    vision: bool
    audio: bool


class Props(AnswerModel):
    """The answer of /props."""

    default_generation_settings: DefaultSettings
    model_alias: str = Field(description="The served name.")
    bos_token: str = Field(description="Empty where the tokenizer has none.")
    eos_token: str = Field(description="Empty where the tokenizer has none.")
    modalities: Modalities
    build_info: str


def props_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def props(http_request: Request) -> Response:
        """Tell what a variant is, in llama.cpp's words; `?model=` says which, where several are."""
        name = context.models.resolve(http_request.query_params.get("model"))
        status, model = context.models.find(name)
        if model is None:
            raise UnavailableError(
                f"{status.name} is {status.state.value}; ask again when it is served",
                retry_after_s=RETRY_AFTER_S,
            )
        return ModelResponse(describe(model), headers=model.identity.headers)

    return [
        Endpoint(
            method="GET",
            path="/props",
            tag="llama.cpp",
            handler=props,
            query={"model": "A served name; needed only where several variants are served."},
            response=Props,
            statuses=(404, 503),
        )
    ]


def describe(model: ServedModel) -> Props:
    """Return what there is to tell of a variant."""
    silent = resolve_sampling(SamplingOptions(), model, max_tokens=1)
    return Props(
        default_generation_settings=DefaultSettings(
            n_ctx=model.engine.max_model_len, params=sampling_settings(silent)
        ),
        model_alias=model.name,
        bos_token=str(model.tokenizer.bos_token or ""),
        eos_token=str(model.tokenizer.eos_token or ""),
        modalities=Modalities(vision=False, audio=False),
        build_info=f"tetrad-{version('tetrad')}",
    )
