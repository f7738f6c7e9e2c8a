"""POST /infill: fills a gap in code, in llama.cpp's words; editors ask it at each keystroke."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

from engine.request import Terms
from engine.sampling_params import MAX_BIAS
from service.api.endpoint import Endpoint
from service.api.llama_cpp.answer_models import InfillAnswer
from service.api.llama_cpp.answers import InfillWriter
from service.api.llama_cpp.fields import InfillRequest
from service.api.request_bodies import read_request
from service.api.respond import acquire, answer, prepare, reserve
from service.errors import InvalidFieldError
from service.serving.generation_request import AnswerForm, GenerationRequest
from service.serving.infilling import AnswerRoom, Gap, plan_infill
from service.serving.sampling import SamplingOptions
from service.serving.text_lanes import run_in_lane
from service.text.backend import decode_whole, fast_backend
from service.text.infilling.infilling import InfillFile
from service.text.prompt import encode_prompt

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.infilling import PlannedInfill
    from service.serving.served_model import ServedModel

_UNNAMED = "tmp"  # a file without a name, as llama.cpp calls it


def infill_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def infill(http_request: Request) -> Response:
        """Fill the gap between two texts, in llama.cpp's words.

        Needs no `model` where one variant is served. What has no room in the context is cut from
        the ends that are farthest from the gap; `truncated` and `tokens_cut` say so.
        """
        request = await read_request(http_request, InfillRequest, context)
        model = await acquire(http_request, request.model, context)
        place = reserve(http_request, model, 1)

        async def read() -> tuple[GenerationRequest, str | None]:
            planned = await plan(request, model, most_biases=context.limits.max_token_ids)
            text = await _prompt_text(planned, model) if request.reports_prompt else None
            return planned, text

        planned, prompt_text = await prepare(http_request, read(), context)
        return await answer(
            http_request,
            planned,
            InfillWriter(request, model, prompt_text),
            is_stream=request.is_stream,
            model=model,
            context=context,
            place=place,
        )

    return [
        Endpoint(
            method="POST",
            path="/infill",
            tag="llama.cpp",
            handler=infill,
            request=InfillRequest,
            response=InfillAnswer,
            chunk=InfillAnswer,
            infills=True,
            takes_room=True,
        )
    ]


async def plan_gap(request: InfillRequest, model: ServedModel) -> PlannedInfill:
    """Put the prompt together. Raises a RequestError or TextError."""
    gap = Gap(
        prefix=request.input_prefix,
        suffix=request.input_suffix,
        prompt=request.prompt or "",
        files=[
            InfillFile(file.filename or _UNNAMED, file.text) for file in request.input_extra or ()
        ],
    )
    room = AnswerRoom.at_most(request.value_of("n_predict"), model.engine.max_model_len)
    return await plan_infill(gap, model, room)


async def plan(
    request: InfillRequest, model: ServedModel, *, most_biases: int
) -> GenerationRequest:
    """Translate a request. Raises a RequestError or TextError.

    most_biases: as many tokens as one field may name; a short body's texts hold far more.
    """
    planned = await plan_gap(request, model)
    return GenerationRequest(
        prompts=[planned.prompt],
        max_tokens=[planned.max_tokens],
        options=SamplingOptions(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            typical_p=request.typical_p,
            repetition_penalty=request.repeat_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias=await _biases(request, model, most_biases),
            seed=request.seed,
            ignore_eos=bool(request.ignore_eos),
            logprobs=request.num_probs or None,
        ),
        end_token_ids=planned.end_token_ids,
        form=AnswerForm(
            stop_strings=request.stop or (),
            reports_tokens=request.num_probs > 0,
            reports_token_ids=request.is_stream or bool(request.return_tokens),
            max_seconds_of_text=request.max_seconds_of_text,
            min_indent=request.n_indent or 0,
            is_timed=True,
        ),
        text_form=request.text_form,
        # Nobody else has this salt, so nothing that is cached is found.
        terms=Terms(cache_salt=uuid.uuid4().hex if request.cache_prompt is False else ""),
    )


async def _prompt_text(planned: GenerationRequest, model: ServedModel) -> str:
    """Return the prompt as the model sees it; beside the event loop, as it may be long."""
    token_ids = planned.prompts[0].token_ids
    decode = partial(decode_whole, fast_backend(model.tokenizer), token_ids)
    return await run_in_lane(len(token_ids), decode)


async def _biases(request: InfillRequest, model: ServedModel, most: int) -> dict[int, float]:
    """Return the biases by token; of several for one token the sum, within the bounds.

    Raises InvalidFieldError where texts name more tokens than are taken as ids.
    """
    texts = [token for token, _ in request.token_biases if isinstance(token, str)]
    ids_by_text: dict[str, list[int]] = {}
    if texts:
        encode = partial(_ids_by_text, texts, model)
        ids_by_text = await run_in_lane(sum(map(len, texts)), encode)
    biases: dict[int, float] = {}
    for token, bias in request.token_biases:
        for token_id in [token] if isinstance(token, int) else ids_by_text[token]:
            total = biases.get(token_id, 0.0) + bias
            biases[token_id] = max(-MAX_BIAS, min(total, MAX_BIAS))
    if len(biases) > most:
        raise InvalidFieldError(
            f"logit_bias: its texts name {len(biases)} tokens; give at most {most}",
            param="logit_bias",
        )
    return biases


def _ids_by_text(texts: list[str], model: ServedModel) -> dict[str, list[int]]:
    return {
        text: encode_prompt(model.tokenizer, text, add_special_tokens=False, parse_special=False)
        for text in texts
    }
