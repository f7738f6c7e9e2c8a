"""What a client may send by mistake or malice: each gets its status, and nothing breaks.

After each case an ordinary request must answer byte for byte as before.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.sampling_params import MAX_SEED
from service.api.openai.chat import ChatRequest
from service.api.openai.completion_request import CompletionRequest
from tests.service.fakes import LIMITS, MODEL, FakeEngine, RunningServer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

MAX_BODY = 64 * 1024
COMPLETION = {"model": MODEL, "prompt": "hi", "max_tokens": 2}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
BOTH = [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    engine = FakeEngine(says(tiny_tokenizer, "yes"), max_model_len=4096)
    with running_server(engine, tiny_tokenizer, max_body_bytes=MAX_BODY) as running:
        yield running
        assert not engine.running
        assert running.lifecycle.num_open_requests == 0


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as made:
        yield made


@pytest.fixture(scope="module")
def strict_client(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[httpx.Client]:
    """Of a server whose policy is to refuse what has no effect."""
    limits = replace(LIMITS, unknown_fields="strict")
    engine = FakeEngine(says(tiny_tokenizer, "yes"), max_model_len=4096)
    with (
        running_server(engine, tiny_tokenizer, limits=limits) as running,
        httpx.Client(base_url=running.url, timeout=20) as made,
    ):
        yield made


def ordinary(client: httpx.Client) -> bytes:
    """Return an ordinary answer without what differs between any two."""
    response = client.post("/v1/completions", json=COMPLETION)
    assert response.status_code == 200
    return re.sub(rb'"(id|created)":[^,]*,', b"", response.content)


@pytest.fixture(autouse=True)
def _answers_as_before(client: httpx.Client) -> Iterator[None]:
    before = ordinary(client)
    yield
    assert ordinary(client) == before


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """Check that a response is an error of this status, and of a decent size."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert len(error["message"]) <= 10 * 203
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "m"',
        b'{"model": "m"} {}',
        json.dumps(COMPLETION).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(COMPLETION).encode(),
        b'{"model": "\x00"}',
        b'{"model": "\xff"}',
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b"3",
        b'"text"',
        b"null",
        b"[]",
        b"NaN",
        b"{'model': 1}",
        b'{"model": "m", "prompt": "a\\ud800b"}',
        b'{"model": "m", "prompt": "\\udc00"}',
        b'{"model": "m", "\\ud800": 1}',
        b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_body_that_is_no_json_object(client, path, body):
    error = refused(client.post(path, content=body, headers=JSON))
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", '"0.5"', "true", "[]", "{}"]
)
@pytest.mark.parametrize("name", ["temperature", "top_p", "seed", "max_tokens", "n", "top_k"])
def test_number_that_is_none(client, name, number):
    body = json.dumps(COMPLETION)[:-1].replace('"max_tokens": 2', '"echo": false')
    response = client.post("/v1/completions", content=f'{body}, "{name}": {number}}}', headers=JSON)
    error = refused(response)
    if error["code"] != "invalid_json":  # NaN and its like are no JSON
        assert error["param"] == name


BOUNDS = [
    ("temperature", 0, 2, -0.01, 2.01),
    ("top_p", 0.0001, 1, 0, 1.0001),
    ("top_k", -1, 2**31 - 1, -2, 2**31),
    ("seed", 0, MAX_SEED, -2, MAX_SEED + 1),  # -1 is silence
    ("max_tokens", 0, 4000, -3, 10**30),  # -1 and -2 are silence
    ("n", 1, LIMITS.max_choices, 0, LIMITS.max_choices + 1),
]


@pytest.mark.parametrize(("name", "least", "most", "under", "over"), BOUNDS)
def test_bounds_are_taken_and_nothing_beyond(client, name, least, most, under, over):
    for value in (least, most, None):
        assert client.post("/v1/completions", json={**COMPLETION, name: value}).is_success
    for value in (under, over, -(10**30), 10**30):
        error = refused(client.post("/v1/completions", json={**COMPLETION, name: value}))
        assert error["param"] == name


@pytest.mark.parametrize("name", ["seed", "max_tokens", "n", "top_k"])
def test_integers_are_integers(client, name):
    assert refused(client.post("/v1/completions", json={**COMPLETION, name: 5.0}))["param"] == name


WRONG_TYPES: dict[str, list[object]] = {
    "model": [1, [], {}, "x" * 513],
    "prompt": [None, 1, {}, [], [[]], ["a", 1], [1, "a"], [[1], "a"], [True], [-1], [1.5], [[[1]]]],
    "stop": [1, True, {"a": 1}, [1], [None], ["a", 1], "x" * 257, ["x"] * 17, "é" * 129],
    "stream": [1, "true", []],
    "stream_options": [{"include_usage": True}, {"continuous_usage_stats": True}, 1],  # no stream
    "echo": [1, "yes"],
    "max_completion_tokens": [1],  # max_tokens is given too
}


@pytest.mark.parametrize("name", sorted(WRONG_TYPES))
def test_wrong_type_or_value_of_each_field(client, name):
    for value in WRONG_TYPES[name]:
        refused(client.post("/v1/completions", json={**COMPLETION, name: value}))


WRONG_MESSAGES: list[object] = [
    None,
    1,
    "hi",
    {},
    [],
    [1],
    [None],
    [{}],
    [{"role": "user"}],
    [{"content": "hi"}],
    [{"role": "robot", "content": "hi"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 1}],
    [{"role": "user", "content": ["hi"]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
    [{"role": "user", "content": "hi", "name": 1}],
    [{"role": "assistant", "content": "hi", "tool_calls": [{}]}],
    [{"role": "user", "content": "hi", **{f"k{i}": 0 for i in range(5000)}}],
    [{"role": "user", "content": ""}] * 2049,
]


def test_wrong_messages(client):
    for messages in WRONG_MESSAGES:
        error = refused(client.post("/v1/chat/completions", json={**CHAT, "messages": messages}))
        assert error["param"].startswith("messages")


WRONG_TOOLS: dict[str, list[object]] = {
    "tools": [1, "x", ["x"], {"a": 1}, [{}], [None], [{"type": "x"}], [{"function": {"name": 1}}]],
    "tool_choice": [1, "x", ["x"], {"type": "x"}, {"a": 1}, "required", {"function": []}],
    "functions": [1, "x", ["x"], {"a": 1}, [{}], [{"name": "x", "parameters": 1}]],
    "function_call": [1, "x", ["x"], {"a": 1}, {"name": "x"}],
}


@pytest.mark.parametrize("name", WRONG_TOOLS)
def test_wrong_tools(client, name):
    for value in WRONG_TOOLS[name]:
        error = refused(client.post("/v1/chat/completions", json={**CHAT, name: value}))
        assert name in error["message"]


ODD_SCHEMAS: list[object] = [
    {"type": {"a": 1}},
    {"type": "string"},
    {"properties": "x"},
    {"properties": {"a": 1}},
    {"required": [[]]},
    {"required": {}},
    {"properties": {}, "required": [[], {}, 1]},
    {"$ref": "#"},
    {"$ref": "https://example.org/x"},
    {"allOf": [{"$ref": "#"}]},
    {"additionalProperties": 7},
    {"pattern": "(" * 500},
    {"properties": {"a": {"type": "string", "pattern": "(a{1000}){1000}"}}},
    {"properties": {"a": {"enum": []}}, "required": ["a"]},
    {"x-guidance": {"whitespace_flexible": True}},
]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_odd_schemas_are_followed_or_refused(client, choice):
    nested: dict[str, object] = {}
    for _ in range(90):
        nested = {"properties": {"a": nested}}
    for schema in [*ODD_SCHEMAS, nested]:
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        body = {**CHAT, "tools": tools, "tool_choice": choice}
        response = client.post("/v1/chat/completions", json=body)
        if not response.is_success:
            assert refused(response)["param"].startswith("tools")


UNSUPPORTED = [
    "modalities", "audio", "chat_template", "prompt_embeds",
]  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_would_change_the_answer_and_is_not_supported_is_refused_by_name(client, name):
    for value in (1, "x", ["x"], {"type": "x"}, {"a": 1}):
        error = refused(client.post("/v1/chat/completions", json={**CHAT, name: value}))
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)


FORMS = ["response_format", "structured_outputs", "guided_json", "guided_choice", "json_schema"]


@pytest.mark.parametrize("name", UNSUPPORTED + FORMS)
@pytest.mark.parametrize("value", [None, "", [], {}])
def test_fields_that_say_nothing_are_taken(client, name, value):
    response = client.post("/v1/chat/completions", json={**CHAT, name: value})
    assert response.is_success, response.text
    assert "x-ignored-params" not in response.headers


UNKNOWN = ["best_off", "top_a", "mirostat", "dry_multiplier", "use_beam_search"]


@pytest.mark.parametrize(("path", "body"), BOTH)
def test_unknown_fields_are_named_and_the_answer_is_as_without(client, path, body):
    response = client.post(path, json={**body, **dict.fromkeys(UNKNOWN, 1)})
    assert response.is_success
    assert response.headers["x-ignored-params"] == ", ".join(UNKNOWN)


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("value", [1, True, "x", [1], {"a": {}}])
def test_strict_policy_refuses_unknown_fields_by_name(strict_client, path, body, value):
    for name in (*UNKNOWN, "store", "metadata", "prompt_cache_key"):
        error = refused(strict_client.post(path, json={**body, name: value}))
        assert (error["code"], error["param"]) == ("unknown_parameter", name)


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("value", [None, "", [], {}])
def test_strict_policy_takes_unknown_fields_that_say_nothing(strict_client, path, body, value):
    for name in (*UNKNOWN, "store", "metadata", "prompt_cache_key"):
        assert strict_client.post(path, json={**body, name: value}).is_success


def test_strict_policy_refuses_unknown_fields_at_any_depth(strict_client):
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    body = {**CHAT, "messages": [{"role": "user", "content": [part]}]}
    error = refused(strict_client.post("/v1/chat/completions", json=body))
    assert error["param"] == "messages[].content[].cache_control"


def test_ignore_policy_says_nothing(tiny_tokenizer):
    limits = replace(LIMITS, unknown_fields="ignore")
    with running_server(
        FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer, limits=limits
    ) as own:
        response = httpx.post(f"{own.url}/v1/completions", json={**COMPLETION, "top_a": 1})
    assert response.is_success
    assert "x-ignored-params" not in response.headers


def test_fields_of_one_endpoint_are_unknown_to_the_other(client, strict_client):
    for path, body in (
        ("/v1/chat/completions", {**CHAT, "echo": True}),
        ("/v1/completions", {**COMPLETION, "messages": [1]}),
    ):
        (name,) = body.keys() - dict(BOTH)[path].keys()
        assert client.post(path, json=body).headers["x-ignored-params"] == name
        assert refused(strict_client.post(path, json=body))["param"] == name


def test_unknown_names_are_counted_and_cut(client):
    names = {f"k{i}": 0 for i in range(4000)}
    error = refused(client.post("/v1/completions", json={**COMPLETION, **names}))
    assert "3990 more" in error["message"]


@pytest.mark.parametrize("name", ["<script>", "a b", "x" * 65, "ключ", "a\nb", ""])
def test_odd_names_are_not_echoed(client, strict_client, name):
    named = client.post("/v1/completions", json={**COMPLETION, name: 1}).headers["x-ignored-params"]
    assert named == "(a name of other than 1 to 64 plain characters)"
    error = refused(strict_client.post("/v1/completions", json={**COMPLETION, name: 1}))
    assert name not in error["message"].replace(" ", "") or name in ("", "a b")
    assert name != error["param"]


def test_values_are_never_echoed(client, strict_client):
    secret = "hunter 2"  # as a name too: a field nobody would write is not named
    for name in ("model", "prompt", "stop", "n", "seed", "temperature", "echo", "stream_options"):
        body = {**COMPLETION, name: {secret: secret}}
        response = strict_client.post("/v1/completions", json=body)
        refused(response)
        assert secret not in response.text
        lenient = client.post("/v1/completions", json=body)
        assert secret not in lenient.text + str(lenient.headers)
    assert secret not in client.post("/v1/completions", json={**COMPLETION, "model": secret}).text


def test_many_wrong_items_give_a_small_error(client):
    response = client.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": 1}] * 1500})
    refused(response)
    assert len(response.content) < 1000


def test_a_name_twice_in_one_object_is_refused_at_any_depth(client):
    """One of the two would have been obeyed, and nobody could know which."""
    for body in ('{"n": 1, "n": 1}', '{"a": [{"n": 1, "m": 2, "n": null}], "n": 1}'):
        response = client.post("/v1/completions", content=body, headers=JSON)
        assert refused(response)["param"] == "n"
    secret = "sk-secret words"
    response = client.post("/tokenize", content=f'{{"{secret}": 1, "{secret}": 2}}', headers=JSON)
    assert "twice" in refused(response)["message"]
    assert secret not in response.text


def body_of(size: int) -> bytes:
    """An ordinary body of exactly so many bytes: JSON may be padded with blanks."""
    return json.dumps(COMPLETION).encode().ljust(size)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(
    ("size", "status"), [(MAX_BODY - 1, 200), (MAX_BODY, 200), (MAX_BODY + 1, 413)]
)
def test_body_may_be_as_large_as_allowed(client, size, status, is_chunked):
    body = body_of(size)
    content = (body[i : i + 1000] for i in range(0, size, 1000)) if is_chunked else body
    response = client.post("/v1/completions", content=content, headers=JSON)
    assert response.status_code == status
    if status == 413:
        assert str(MAX_BODY) in refused(response, 413)["message"]


def test_body_that_never_ends_is_cut_off(client):
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    assert client.post("/v1/completions", content=endless(), headers=JSON).status_code == 413


def test_body_in_one_byte_chunks_is_read(server):
    body = json.dumps(COMPLETION).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for byte in body:
            connection.sendall(b"1\r\n%c\r\n" % byte)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_body_shorter_than_it_says_ends_with_its_connection(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 500\r\n\r\n{}"
        )


@pytest.mark.parametrize("value", ["-5", "abc", "5, 6", "9" * 30])
def test_wrong_content_length_is_refused(server, value):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            f"content-type: application/json\r\n"
            f"content-length: {value}\r\n\r\n{{}}".encode()
        )
        assert connection.recv(100).split()[1] in (b"400", b"413")


def test_prompt_at_the_limit_and_one_beyond(client):
    body = {**COMPLETION, "max_tokens": 1}
    assert client.post("/v1/completions", json={**body, "prompt": [5] * 4095}).is_success
    error = refused(client.post("/v1/completions", json={**body, "prompt": [5] * 4096}))
    assert error["code"] == "context_length_exceeded"


def test_long_prompt_without_a_space_takes_no_time(client):
    started = time.monotonic()
    error = refused(client.post("/v1/completions", json={**COMPLETION, "prompt": "a" * 60_000}))
    assert error["code"] == "context_length_exceeded"
    assert time.monotonic() - started < 5


def test_control_pieces_typed_in_a_prompt_and_a_message_are_taken(client):
    text = "<s></s><|im_start|>\u0000\r\n\u202e"
    assert client.post("/v1/completions", json={**COMPLETION, "prompt": text}).is_success
    messages = [{"role": "user", "content": text}]
    assert client.post("/v1/chat/completions", json={**CHAT, "messages": messages}).is_success


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
FIELDS = sorted(CompletionRequest.model_fields | ChatRequest.model_fields)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    endpoint=st.sampled_from(BOTH),
    changes=st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=3),
)
def test_no_combination_of_values_is_a_fault_of_the_server(client, endpoint, changes):
    path, body = endpoint
    content = json.dumps({**body, **changes})  # NaN and lone surrogates included
    response = client.post(path, content=content, headers=JSON)
    assert response.status_code in (200, 400, 404), (content, response.text)
