"""The models of errors, held against the errors that are sent."""

from __future__ import annotations

import pytest

from engine.errors import QueueFullError
from service.api.endpoint import ErrorShape
from service.api.error_models import ERROR_MODELS, AnthropicError, OpenAIError
from service.api.error_responses import (
    STATUS,
    anthropic_error_body,
    error_body,
    http_error_response,
)
from service.errors import InvalidFieldError, UnavailableError

ARGUMENTS = {UnavailableError: {"retry_after_s": 1}, QueueFullError: {"retry_after_s": 1.0}}


@pytest.mark.parametrize("kind", [*STATUS, KeyError], ids=lambda kind: kind.__name__)
def test_every_error_is_as_its_model_says(kind):
    body = error_body(kind("the reason", **ARGUMENTS.get(kind, {})))
    assert OpenAIError.model_validate(body).model_dump() == body


@pytest.mark.parametrize("kind", [*STATUS, KeyError], ids=lambda kind: kind.__name__)
def test_every_error_in_anthropics_shape_is_as_its_model_says(kind):
    body = anthropic_error_body(kind("the reason", **ARGUMENTS.get(kind, {})), "an-id")
    assert AnthropicError.model_validate(body).model_dump() == body


def test_error_of_a_field_and_of_the_router_are_as_their_model_says():
    OpenAIError.model_validate(error_body(InvalidFieldError("n: too many", param="n")))
    OpenAIError.model_validate_json(http_error_response(404, "no such path", None).body)


def test_every_shape_has_a_model():
    assert set(ERROR_MODELS) == set(ErrorShape)
