"""What a response says of itself and of its request, at its beginning and at its end."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from service.api.openai.responses.tools import ResponseToolChoice

if TYPE_CHECKING:
    from pydantic import BaseModel

    from service.api.openai.responses.output import Fields, TurnOutput
    from service.api.openai.responses.request import ResponsesRequest
    from service.serving.generation import Generation
    from service.serving.served_model import ServedModel


class ResponseFacts:
    """What an answer says of itself and of its request, however far it has come."""

    def __init__(self, request: ResponsesRequest, model: ServedModel) -> None:
        self.name = request.request_id or uuid.uuid4().hex
        self._beginning = {
            "id": f"resp_{self.name}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "model": model.name,
            "system_fingerprint": model.identity.fingerprint,
            **echo_of(request),
        }

    def repeat_little(self) -> None:
        """Leave out of the request what may be long: it is refused, perhaps for that."""
        self._beginning |= {
            "instructions": None,
            "metadata": {},
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
        }

    def note_sampling(self, generation: Generation) -> None:
        """Tell from now on what tokens are picked with, also where the request is silent."""
        params = generation.params_of(0)
        self._beginning |= {"temperature": params.temperature, "top_p": params.top_p}

    def fields(self, status: str, **more: Any) -> Fields:
        """Return the whole object; more: what is other than at its beginning."""
        return self._beginning | {"status": status, **more}

    def ended(self, output: TurnOutput, generation: Generation, *, is_cut: bool) -> Fields:
        """Return the whole object at its end; is_cut: by length."""
        return self.fields(
            "incomplete" if is_cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            output=output.items,
            usage=self.usage(generation),
        )

    def usage(self, generation: Generation) -> Fields:
        """Return the tokens so far."""
        counted = generation.usage
        return {
            "input_tokens": counted.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": counted.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": counted.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
            "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        }


def echo_of(request: ResponsesRequest) -> Fields:
    """Return the request's own fields as the answer repeats them."""
    asked, thinks, choice = request.text, request.reasoning, request.tool_choice
    form = asked.format if asked is not None else None
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.value_of("max_tokens"),
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": None if thinks is None else thinks.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "background": False,
        "store": False,
        "temperature": request.temperature,
        "text": {
            "format": {"type": "text"} if form is None else _dumped(form),
            "verbosity": "medium",
        },
        "tool_choice": _dumped(choice)
        if isinstance(choice, ResponseToolChoice)
        else choice or "auto",
        "tools": [_dumped(tool) for tool in request.tools or () if tool.is_used],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _dumped(model: BaseModel) -> Fields:
    return model.model_dump(exclude_unset=True, by_alias=True)
