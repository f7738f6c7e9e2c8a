"""A server asked over real sockets."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from service.client.errors import (
    BrokenAnswerError,
    RefusedError,
    UnreachableError,
    WrongQuestionError,
)
from service.client.server import CHAT_PATH, Server
from tests.service.client.scripted_server import (
    DONE,
    END,
    UNTIL_LEFT,
    ScriptedServer,
    as_json,
    error,
    event,
    says,
    scripted_server,
)
from tests.service.server.certificates import make_certificate, needs_openssl

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 10


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def server(script: ScriptedServer) -> Iterator[Server]:
    with Server(f"{script.url}/v1", "sk-test") as asked:
        yield asked


@pytest.fixture
def tls_script(tmp_path) -> Iterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    with scripted_server(context) as running:
        yield running


def text_of(server: Server) -> str:
    with server.answer(CHAT_PATH, {"messages": []}) as pieces:
        return "".join(piece.text for piece in pieces)


def test_an_answer_is_streamed_and_the_key_sent(server, script):
    script.chat(says("Hel"), b": keep-alive\n", says("lo"), END)
    assert text_of(server) == "Hello"
    (asked,) = script.asked
    assert asked.headers["authorization"] == "Bearer sk-test"
    assert asked.body == {"messages": [], "stream": True}


def test_bytes_that_were_no_text_are_asked_as_question_marks(server, script):
    script.chat(END)
    with server.answer(CHAT_PATH, {"messages": "größe \udcff"}):
        pass
    assert script.bodies[0]["messages"] == "größe ?"
    assert script.asked[0].headers["content-type"] == "application/json"


def test_an_address_that_only_the_client_finds_wrong_is_told():
    with (
        Server("http://256.1.1.1/v1", None) as server,
        pytest.raises(WrongQuestionError, match="is no address"),
    ):
        server.model_names()


def test_an_answer_that_cannot_be_unpacked_is_broken(server, script):
    script.chat(b"no gzip", content_encoding="gzip")
    with pytest.raises(BrokenAnswerError, match="the connection ended"):
        text_of(server)


def test_without_a_key_none_is_sent(script):
    script.chat(END)
    with Server(f"{script.url}/v1", None) as server:
        text_of(server)
    assert "authorization" not in script.asked[0].headers


def test_leaving_an_answer_closes_its_connection_at_once(server, script):
    script.chat(says("Hello"), UNTIL_LEFT)
    with server.answer(CHAT_PATH, {}) as pieces:
        coming = iter(pieces)
        assert next(coming).text == "Hello"
        assert not script.has_left.is_set()
    assert script.has_left.wait(LIMIT_S)


def test_the_only_model_is_meant_where_none_is_named(server, script):
    script.models("demo")
    assert server.choose_model(None) == "demo"
    assert server.choose_model("other") == "other"  # the server knows its aliases


def test_of_several_models_one_is_to_be_named(server, script):
    script.models("a/b:c", "small")
    with pytest.raises(WrongQuestionError, match="--model: a/b:c, small"):
        server.choose_model(None)


def test_a_server_without_models_is_told(server, script):
    script.models()
    with pytest.raises(RefusedError, match="serves no model now"):
        server.choose_model(None)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": 5}', b'{"data": [{}]}', b""])
def test_what_lists_no_models_is_no_such_api(server, script, body):
    script.reply("/v1/models", body)
    with pytest.raises(RefusedError, match="is no OpenAI-style API"):
        server.model_names()


def test_fields_that_the_server_ignores_are_told(server, script):
    script.chat(END, x_ignored_params="response_format.x, seed")
    with server.answer(CHAT_PATH, {}) as pieces:
        assert pieces.ignored_fields == ["response_format.x", "seed"]


def test_a_refusal_is_raised_with_its_words(server, script):
    script.reply("/v1/chat/completions", error("full", "queue_full"), status=429, retry_after="3")
    with pytest.raises(RefusedError, match="full; try again in 3 s"):
        text_of(server)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([says("a")], "ended before the answer did"),
        ([], "ended before the answer did"),
        ([says("a"), event({"error": {"message": "out of memory"}}), DONE], "out of memory"),
        ([says("a"), b"data: {broken\n\n"], "no piece of an answer"),
    ],
)
def test_an_answer_that_breaks_off_is_told_from_a_whole_one(server, script, pieces, words):
    script.chat(*pieces)
    with pytest.raises(BrokenAnswerError, match=words):
        text_of(server)


def test_a_connection_that_is_cut_is_told(server, script):
    script.chat(says("a"), content_length="5000")
    with pytest.raises(BrokenAnswerError, match="the connection ended before the answer did"):
        text_of(server)


def test_an_answer_is_whole_with_its_reason_though_no_done_follows(server, script):
    script.chat(says("a", "stop"))
    assert text_of(server) == "a"


def test_where_nobody_listens_it_is_said_how_to_start_a_server():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        Server(f"http://127.0.0.1:{port}/v1", None) as server,
        pytest.raises(UnreachableError, match=r"nobody answers at .*`tetrad serve`.*--url"),
    ):
        server.model_names()


def test_what_speaks_no_http_is_told():
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(LIMIT_S)
        with Server(f"http://127.0.0.1:{other.getsockname()[1]}/v1", None) as server:
            names = _in_thread(server.model_names)
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
                with pytest.raises(UnreachableError, match="as a server of HTTP would"):
                    names()


def test_https_to_a_port_of_http_is_told(script):
    url = script.url.replace("http:", "https:")
    with (
        Server(f"{url}/v1", None) as server,
        pytest.raises(UnreachableError, match=r"does not speak HTTPS .*begin --url with http://"),
    ):
        server.model_names()


@needs_openssl
def test_http_to_a_port_of_https_is_told(tls_script):
    with (
        Server(f"{tls_script.url}/v1", None) as server,
        pytest.raises(UnreachableError, match="begin --url with https:// if it is TLS"),
    ):
        server.model_names()


@needs_openssl
def test_a_certificate_is_trusted_where_the_environment_says_so(tls_script, tmp_path, monkeypatch):
    tls_script.models("demo")
    url = tls_script.url.replace("http:", "https:")
    with (
        Server(f"{url}/v1", None) as server,
        pytest.raises(UnreachableError, match=r"certificate of .* is not trusted here .*SSL_CERT"),
    ):
        server.model_names()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with Server(f"{url}/v1", None) as server:
        assert server.model_names() == ["demo"]


def test_no_proxy_is_asked_for_what_is_on_this_machine(server, script, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    script.models("demo")
    with Server(f"{script.url}/v1", None) as direct:
        assert direct.model_names() == ["demo"]


def test_an_error_without_end_is_not_read_to_it(server, script, monkeypatch):
    monkeypatch.setattr("service.client.server.MAX_BODY_BYTES", 10)
    script.reply("/v1/models", as_json("x" * 100))
    with pytest.raises(RefusedError, match="has no end"):
        server.model_names()


def _in_thread(function):
    """Run a function beside the test; what is returned waits for its end, and returns or raises."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return lambda: future.result(LIMIT_S)
