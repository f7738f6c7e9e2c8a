"""The doctor's questions to a hub, through the real client in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

PROBE = """
import dataclasses, json, sys
from loaders.repository.hub import probe_hub
print(json.dumps(dataclasses.asdict(probe_hub(sys.argv[1] or None))))
"""


def run(program: str, argument: str, endpoint: str, home: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, argument],
        env={"PATH": "/usr/bin:/bin", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **variables},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@contextmanager
def hub_that_answers(status: int, date: str):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("authorization")))
            self.send_response_only(status)
            self.send_header("Date", date)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "token", "state"),
    [(200, "hf_x", "valid"), (401, "hf_x", "refused"), (401, "", "absent")],
)
def test_token_and_clock_are_told(tmp_path, status, token, state):
    with hub_that_answers(status, "Thu, 01 Jan 2026 00:00:00 GMT") as (url, seen):
        answer = json.loads(run(PROBE, token, url, tmp_path))
    assert (answer["endpoint"], answer["problem"], answer["token"]) == (url, None, state)
    assert answer["clock_lead_s"] > 86_400
    assert seen[-1:] == [("/api/whoami-v2", f"Bearer {token}" if token else None)]


@pytest.mark.slow
def test_a_hub_that_is_ill_or_away_is_a_problem(tmp_path):
    with hub_that_answers(503, "nonsense") as (url, _):
        assert "503" in json.loads(run(PROBE, "", url, tmp_path))["problem"]
    assert json.loads(run(PROBE, "", "http://127.0.0.1:9", tmp_path))["problem"]
    offline = run(PROBE, "", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(offline)["problem"] == "OfflineModeIsEnabled"
