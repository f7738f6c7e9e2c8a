"""The server answers as its document at /openapi.json says, whatever fits the document's schemas.

Schemathesis makes requests out of the document, right ones and wrong ones, and checks each answer:
no 500, no status that is not documented, no body that its schema would not take.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from engine.outputs import TokenLogprobs
from service.api.application import endpoints_of
from service.api.error_models import ERROR_MODELS
from service.api.scope import EVENT_STREAM
from service.batches.keeper import BatchKeeper
from service.server.lifecycle import Lifecycle
from tests.service.fakes import (
    FakeEngine,
    FakeModels,
    RunningServer,
    api_context,
    gap_infilling,
    gap_tokenizer,
    running_server,
    says,
)
from tests.service.kept_batches import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    import schemathesis

    from engine.sampling_params import SamplingParams

tool = pytest.importorskip("schemathesis", reason="not installed: pip install -e '.[dev]'")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

_MODELS = FakeModels(None)
ENDPOINTS = {
    (endpoint.method, endpoint.path.replace(":path}", "}")): endpoint
    for endpoint in endpoints_of(
        api_context(
            Lifecycle(_MODELS), _MODELS, batches=BatchKeeper(Path("never opened"), limits())
        )
    )
}


def events_conform(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Each event of a stream is what its model takes, or an error; the document's schema is its.

    Schemathesis would hold the schema against the event itself, a text with a name.
    """
    if not response.headers.get("content-type", [""])[0].startswith(EVENT_STREAM):
        return
    endpoint = ENDPOINTS[case.operation.method.upper(), case.operation.path]
    assert endpoint.chunk is not None
    error = ERROR_MODELS[endpoint.errors]
    assert response.text is not None
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        (line,) = [line for line in event.split("\n") if line.startswith("data:")]
        data = line.removeprefix("data:").removeprefix(" ")
        if data.startswith(('{"error"', '{"type":"error"')):
            error.model_validate_json(data)
        elif data != "[DONE]":
            endpoint.chunk.model_validate_json(data)


CHECKS = [
    events_conform,
    tool.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def likely(token_id: int, params: SamplingParams) -> TokenLogprobs:
    num_top = max(params.logprobs or 0, params.prompt_logprobs or 0)
    return TokenLogprobs(-0.5, tuple((token, -0.5 - token) for token in range(num_top)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    keeper = BatchKeeper(tmp_path_factory.mktemp("batches"), limits())
    tokenizer = gap_tokenizer()
    engine = FakeEngine(says(tokenizer, "yes"), max_model_len=4096, logprobs=likely)
    infilling = gap_infilling(tokenizer)
    with running_server(engine, tokenizer, infilling=infilling, batches=keeper) as running:
        yield running
        assert not engine.running


@pytest.fixture(scope="module")
def document(server: RunningServer) -> schemathesis.BaseSchema:
    document = httpx.get(f"{server.url}/openapi.json").json()
    for operation in (one for path in document["paths"].values() for one in path.values()):
        content = operation["responses"].get("200", {}).get("content", {})
        if EVENT_STREAM in content:
            content[EVENT_STREAM] = {}
    return tool.openapi.from_dict(document)


def check_operation(
    document: schemathesis.BaseSchema, url: str, operation: tuple[str, str], num_examples: int
) -> None:
    method, path = operation

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=document[path][method].as_strategy())
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=20)

    check()


@pytest.mark.parametrize("operation", ENDPOINTS, ids=" ".join)
def test_answers_are_as_documented(document, server, operation):
    check_operation(document, server.url, operation, 10)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ENDPOINTS, ids=" ".join)
def test_many_answers_are_as_documented(document, server, operation):
    check_operation(document, server.url, operation, 150)
