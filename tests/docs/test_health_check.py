"""What Docker runs to see whether the container is ready: `docker/health.py`."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service.server.certificates import make_certificate, needs_openssl

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCKER = Path(__file__).parents[2] / "docker"


class Handler(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health/ready" else 404)
        self.end_headers()
        self.wfile.write(b'{"phase": "told"}')

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(status: int = 200, certificate: tuple[Path, Path] | None = None) -> Iterator[int]:
    handler = type("WithStatus", (Handler,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def check(port: int, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(DOCKER / "health.py")],
        env=os.environ | {"TETRAD_PORT": str(port)} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_passes_once_the_server_is_ready(status, code):
    with serving(status) as port:
        assert check(port) == (code, '{"phase": "told"}\n')


def test_asks_no_proxy():
    with serving() as port:
        assert check(port, http_proxy="http://127.0.0.1:1", no_proxy="")[0] == 0


@needs_openssl
def test_asks_by_https_where_the_server_has_a_certificate(tmp_path):
    certificate = make_certificate(tmp_path)
    with serving(certificate=certificate) as port:
        assert check(port, TETRAD_TLS_CERTIFICATE=str(certificate[0]))[0] == 0
        code, told = check(port)
    assert code == 1
    assert told.startswith("no answer: ")


def test_a_server_that_is_not_there_takes_one_line():
    with serving() as port:
        pass
    code, told = check(port)
    assert code == 1
    assert told.startswith("no answer: ")
    assert told.count("\n") == 1


def test_is_what_the_image_runs():
    image = (DOCKER / "Dockerfile").read_text()
    assert "COPY docker/health.py ./" in image
    assert 'CMD ["python3", "/opt/source/health.py"]' in image
    assert "!docker/health.py" in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
