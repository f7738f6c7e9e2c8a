"""What every endpoint that takes a body makes of bad ones; to be listed is to be covered.

Bodies are made from the schemas: what is no JSON, too large, of a wrong type, silent, unknown.
After each an ordinary request is answered as before.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from service.api.application import endpoints_of
from service.api.endpoint import Endpoint, ErrorShape
from service.api.error_models import AnthropicError
from service.api.request_bodies import parse_request
from service.api.requests import ClosedModel, RequestModel
from service.errors import InvalidFieldError, MissingFieldError, RequestError, UnsupportedFieldError
from service.server.lifecycle import Lifecycle
from tests.service.fakes import (
    LIMITS,
    FakeEngine,
    FakeModels,
    api_context,
    gap_infilling,
    gap_tokenizer,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BODY = 64 * 1024
JSON = {"content-type": "application/json"}
_MODELS = FakeModels(None)
POSTS = [
    endpoint
    for endpoint in endpoints_of(api_context(Lifecycle(_MODELS), _MODELS))
    if endpoint.method == "POST"
]
with_every_endpoint = pytest.mark.parametrize("endpoint", POSTS, ids=lambda one: one.name)

# The least that each kind of body must hold; a field that is required is looked up by its name.
EXAMPLES: dict[str, object] = {
    "prompt": "hi",
    "messages": [{"role": "user", "content": "hi"}],
    "inputs": "hi",
    "input": "hi",
    "tokens": [5, 6],
    "input_prefix": "a",
    "input_suffix": "b",
}
# Of some kinds one of several fields must be given, which no schema says.
ONE_OF = {"TokenizeRequest": ("prompt",)}
WRONG: list[object] = [
    True, 0, -1, 1.5, 10**30, "", "x", "x" * 600, [], {}, [1], ["x"], [[1]], [None], {"a": 1},
    {"a": {"b": []}}, [{}],
]  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def least_body(kind: type[RequestModel]) -> dict[str, Any]:
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    assert EXAMPLES.keys() >= set(required), f"say in EXAMPLES what {required} may be"
    names = required or ONE_OF.get(kind.__name__, ())
    return {name: EXAMPLES[name] for name in names}


def kind_of(endpoint: Endpoint) -> type[RequestModel]:
    assert endpoint.request is not None, f"{endpoint.name} reads a body of no kind"
    assert issubclass(endpoint.request, RequestModel)
    return endpoint.request


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """Of a server whose variant can do everything."""
    tokenizer = gap_tokenizer()
    engine = FakeEngine(says(tokenizer, "yes"), max_model_len=4096)
    infilling = gap_infilling(tokenizer)
    with (
        running_server(engine, tokenizer, max_body_bytes=MAX_BODY, infilling=infilling) as server,
        httpx.Client(base_url=server.url, timeout=20) as made,
    ):
        yield made
        assert not engine.running
        assert server.lifecycle.num_open_requests == 0


def ordinary(client: httpx.Client) -> bytes:
    """Return an ordinary answer without what differs between any two."""
    response = client.post("/v1/completions", json={"prompt": "hi", "temperature": 0})
    assert response.status_code == 200
    return re.sub(rb'"(id|created)":[^,]*,', b"", response.content)


@pytest.fixture(autouse=True)
def _answers_as_before(client: httpx.Client) -> Iterator[None]:
    before = ordinary(client)
    yield
    assert ordinary(client) == before


def check_refused(endpoint: Endpoint, response: httpx.Response, *statuses: int) -> None:
    """An error of one of these statuses, in the endpoint's own words and of a decent size."""
    wanted = {422 if endpoint.errors is ErrorShape.TGI and s == 400 else s for s in statuses}
    assert response.status_code in wanted, response.text
    body = response.json()
    if endpoint.errors is ErrorShape.TGI:
        assert isinstance(body["error"], str)
        assert body["error_type"]
    elif endpoint.errors is ErrorShape.ANTHROPIC:
        AnthropicError.model_validate(body)
        assert body["request_id"] == response.headers["request-id"]
    else:
        assert body["error"].keys() == {"message", "type", "param", "code"}
    assert len(response.content) < 3000


@with_every_endpoint
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "m"} {}',
        '{"model": "é"}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"model": "\x00"}',
        b'{"model": "\xff"}',
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b"3",
        b'"text"',
        b"null",
        b"[]",
        b"NaN",
        b'{"model": "a\\ud800b"}',
        b'{"\\ud800": 1}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"temperature": NaN}',
    ],
)
def test_body_that_is_no_json_object(client, endpoint, body):
    check_refused(endpoint, client.post(endpoint.path, content=body, headers=JSON), 400)


@with_every_endpoint
def test_body_larger_than_allowed_or_of_another_kind(client, endpoint):
    large = json.dumps(least_body(kind_of(endpoint))).encode().ljust(MAX_BODY + 1)
    check_refused(endpoint, client.post(endpoint.path, content=large, headers=JSON), 413)
    pieces = (large[i : i + 1000] for i in range(0, len(large), 1000))
    check_refused(endpoint, client.post(endpoint.path, content=pieces, headers=JSON), 413)
    for headers in ({"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}):
        check_refused(endpoint, client.post(endpoint.path, content=b"{}", headers=headers), 415)


@with_every_endpoint
def test_many_unknown_names_are_counted_and_cut(client, endpoint):
    body = {**least_body(kind_of(endpoint)), **{f"k{i}": 0 for i in range(4000)}}
    check_refused(endpoint, client.post(endpoint.path, json=body), 400)


@with_every_endpoint
def test_unknown_names_are_named_or_refused_by_the_policy(client, endpoint):
    kind = kind_of(endpoint)
    body = {**least_body(kind), "no_such_field": 1}
    strict = replace(LIMITS, unknown_fields="strict")
    response = client.post(endpoint.path, json=body)
    if issubclass(kind, ClosedModel):
        check_refused(endpoint, response, 400)
    else:
        assert "no_such_field" in response.headers["x-ignored-params"]
        assert parse_request(json.dumps(body).encode(), kind, strict).own_ignored() == [
            "no_such_field"
        ]


@with_every_endpoint
def test_null_says_what_silence_says_for_every_field(endpoint):
    kind = kind_of(endpoint)
    body = least_body(kind)
    silent = parse_request(json.dumps(body).encode(), kind, LIMITS)
    for name in kind.model_fields.keys() - body.keys():
        given = parse_request(json.dumps({**body, name: None}).encode(), kind, LIMITS)
        assert getattr(given, name) == getattr(silent, name), name


@with_every_endpoint
def test_empty_values_of_any_kind_say_nothing_where_lists_and_objects_may_be_left_out(endpoint):
    kind = kind_of(endpoint)
    schema = kind.model_json_schema()
    body = least_body(kind)
    silent = parse_request(json.dumps(body).encode(), kind, LIMITS)
    for name in kind.model_fields.keys() - body.keys():
        allowed = allowed_types(schema["properties"][name], schema)
        values: list[object] = ["", [], {}]
        for value in values if says_nothing("", allowed) else ():
            if name == "messages":  # one must be given; which, no schema says
                continue
            given = parse_request(json.dumps({**body, name: value}).encode(), kind, LIMITS)
            assert getattr(given, name) == getattr(silent, name), name


@with_every_endpoint
def test_required_fields_are_missed_by_name(client, endpoint):
    kind = kind_of(endpoint)
    body = least_body(kind)
    for name in body:
        left = {key: value for key, value in body.items() if key != name}
        error = error_of(left, kind)
        assert name in str(error)
        if kind.__name__ not in ONE_OF:
            assert isinstance(error, MissingFieldError)
            assert error.param == name
        check_refused(endpoint, client.post(endpoint.path, json=left), 400)


@with_every_endpoint
def test_every_field_refuses_what_its_schema_does_not_allow(endpoint):
    """And whatever it is given, it is answered by a sentence that names it."""
    kind = kind_of(endpoint)
    schema = kind.model_json_schema()
    body = least_body(kind)
    for name in kind.model_fields:
        allowed = allowed_types(schema["properties"][name], schema)
        for value in WRONG:
            error = error_of({**body, name: value}, kind)
            if allowed and not is_of(value, allowed) and not says_nothing(value, allowed):
                assert isinstance(error, InvalidFieldError | UnsupportedFieldError), (name, value)
            if isinstance(error, RequestError) and error.param is not None:
                assert len(str(error)) <= 10 * 203


def error_of(body: dict[str, Any], kind: type[RequestModel]) -> RequestError | None:
    try:
        parse_request(json.dumps(body).encode(), kind, LIMITS)
    except RequestError as error:
        return error
    return None


def allowed_types(field: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    """The JSON types that a field's schema allows; none where it says nothing."""
    if "$ref" in field:
        return allowed_types(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "type" in field:
        return {field["type"]}
    kinds = [allowed_types(kind, schema) for kind in field.get("anyOf", [])]
    return set().union(*kinds) if all(kinds) else set()


def says_nothing(value: object, allowed: set[str]) -> bool:
    """Whether a value of another kind is silence: PHP's clients write an empty object as a list."""
    return value in ("", [], {}) and "null" in allowed and bool(allowed & {"array", "object"})


def is_of(value: object, allowed: set[str]) -> bool:
    types = [one for name in allowed if name != "null" for one in TYPES[name]]
    return (
        isinstance(value, bool)
        if bool in types and isinstance(value, bool)
        else (isinstance(value, tuple(types)) and not isinstance(value, bool))
    )


@with_every_endpoint
def test_deep_and_wide_values_are_no_fault_of_the_server(client, endpoint):
    kind = kind_of(endpoint)
    body = least_body(kind)
    deep: object = 0
    for _ in range(90):
        deep = {"a": [deep]}
    for name in kind.model_fields:
        for value in (deep, ["x"] * 3000, {f"k{i}": i for i in range(3000)}):
            response = client.post(endpoint.path, json={**body, name: value})
            assert response.status_code in (200, 400, 404, 422), (name, response.text)
            assert len(response.content) < 60_000 or response.status_code == 200
