"""In whose words a path's errors are told."""

from __future__ import annotations

import pytest

from service.api.endpoint import Endpoint, ErrorShape
from service.api.error_shapes import shape_rule


async def handler(_):
    """Do nothing."""


def endpoint(path: str, errors: ErrorShape = ErrorShape.OPENAI, method: str = "POST") -> Endpoint:
    return Endpoint(method=method, path=path, tag="Test", handler=handler, errors=errors)


def test_a_path_has_the_shape_of_its_endpoint_under_all_its_names():
    shape_of = shape_rule([endpoint("/generate", ErrorShape.TGI), endpoint("/v1/completions")])
    assert shape_of("/generate") is shape_of("/v1/generate") is ErrorShape.TGI
    assert shape_of("/completions") is ErrorShape.OPENAI


@pytest.mark.parametrize("path", ["/generate/", "/generatex", "/", "", "/v1/models/generate"])
def test_other_paths_have_openais(path):
    assert shape_rule([endpoint("/generate", ErrorShape.TGI)])(path) is ErrorShape.OPENAI


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/messages/batches/a", "/v1/messages/"])
def test_what_is_not_there_below_anthropics_paths_is_told_in_their_words(path):
    shape_of = shape_rule([endpoint("/v1/messages", ErrorShape.ANTHROPIC)])
    assert shape_of(path) is ErrorShape.ANTHROPIC
    assert shape_of("/v1/messagesx") is ErrorShape.OPENAI


def test_endpoints_that_share_a_path_must_agree():
    both = [endpoint("/a", ErrorShape.TGI), endpoint("/a", method="GET")]
    with pytest.raises(ValueError, match="different shapes"):
        shape_rule(both)


def test_paths_with_a_parameter_cannot_be_told():
    with pytest.raises(ValueError, match="parameter"):
        shape_rule([endpoint("/a/{name}", ErrorShape.TGI)])
