"""Dashboard and alerts, with a real Prometheus that scrapes a real server under load.

One afternoon of an operator's, in half a minute: a healthy server, more requests than it can take,
an engine that is killed, and the end of the server. Each test looks at a part of what was seen.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
import yaml

from tests.end_to_end.prometheus import MONITORING, find_program, watching, write_files
from tests.service.real_server import RealServer, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.prometheus import Prometheus
    from tests.models import TinyRepositories

KEY = "sk-monitoring"
TOKEN = "metrics-token"
MAX_NUM_SEQS = 2
MODEL = "tiny"
WINDOW_S = 10  # what Grafana would make of $__rate_interval: some scrapes
SETTLING_S = 3.5  # until a state has been scraped, and the rules were looked at
LIMIT_S = 120  # until refusals and waiting have been noticed; 3 s on two cores, 2026-11
# What a machine that other tests keep busy may raise, as is right.
OF_THE_MACHINE = {"TetradFirstTokenSlow", "TetradEventLoopLag"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_program("prometheus") is None or find_program("promtool") is None,
        reason="there is no Prometheus; scripts/setup-prometheus unpacks Debian's",
    ),
]


# ── what was seen ───────────────────────────────────────────────────────────────────────────────


@dataclass
class Seen:
    """What Prometheus told, in the order in which it happened."""

    model_names: list[str]
    instances: list[str]
    rules: list[dict[str, Any]]
    exposition: str
    healthy: dict[str, Any]  # alerts that fired, by name
    overloaded: dict[str, Any]
    engine_killed: dict[str, Any]
    ended: dict[str, Any]
    values: dict[str, list[float]] = field(default_factory=dict)  # by the dashboard's expressions


@pytest.fixture(scope="module")
def seen(tiny_repo: TinyRepositories, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("monitored")
    (folder / "key").write_text(KEY + "\n")
    (folder / "token").write_text(TOKEN + "\n")
    settings = {
        "served_model_name": MODEL,
        "cache_dir": str(tiny_repo.cache_dir),
        "api_key_file": str(folder / "key"),
        "metrics_token_file": str(folder / "token"),
        "backend": "reference",
        "max_num_seqs": MAX_NUM_SEQS,
        "max_queued_seqs": 2,
    }
    with serving(folder, tiny_repo.specs()[1], **settings) as server:
        target = urlsplit(server.url).netloc
        with watching(folder, target, folder / "token") as prometheus:
            return watch(server, prometheus)


def watch(server: RealServer, prometheus: Prometheus) -> Seen:
    began = time.time()
    with httpx.Client(
        base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120
    ) as client:
        for _ in range(4):
            ask_as_one_should(client)
            time.sleep(0.7)
        time.sleep(SETTLING_S)
        healthy = prometheus.firing()

        # A series that begins with its first count is no increase to Prometheus; the next one is.
        # And what waits between two scrapes only is not seen: ask until a scrape fell into it.
        while not (
            "TetradRefusingWork" in (overloaded := prometheus.firing())
            and saw_a_full_engine(prometheus, began)
        ):
            assert time.time() - began < LIMIT_S
            ask_too_much(client)
            ask_as_one_should(client)  # counts grow after the first look at them, too
            time.sleep(1.2)
        for _ in range(3):
            leave(server)
        time.sleep(SETTLING_S)
        values = {
            expression: prometheus.values(in_a_query(expression), began, time.time())
            for expression in expressions()
        }
        exposition = client.get("/metrics").raise_for_status().text

    os.kill(server.engine_pid(MODEL), signal.SIGKILL)
    engine_killed = prometheus.wait_firing("TetradNotReady", "TetradEngineRestarted")
    server.popen.kill()
    ended = prometheus.wait_firing("TetradDown")
    return Seen(
        model_names=prometheus.label_values("model_name", "tetrad_variant_state"),
        instances=prometheus.label_values("instance", "tetrad_ready"),
        rules=prometheus.rules(),
        exposition=exposition,
        healthy=healthy,
        overloaded=overloaded,
        engine_killed=engine_killed,
        ended=ended,
        values=values,
    )


def saw_a_full_engine(prometheus: Prometheus, began: float) -> bool:
    """Say whether a scrape met requests that ran and some that waited, as a panel shows it."""
    return all(
        max(prometheus.values(f"vllm:num_requests_{state}", began, time.time()), default=0) >= least
        for state, least in (("running", MAX_NUM_SEQS), ("waiting", 1))
    )


def ask_as_one_should(client: httpx.Client) -> None:
    """Chat, completions and a stream, one after another; the beginning is always the same."""
    question = {"role": "user", "content": "Say how to sort a list of numbers in Python. " * 3}
    chat = {"model": MODEL, "messages": [question], "max_tokens": 24, "temperature": 0}
    client.post("/v1/chat/completions", json=chat).raise_for_status()
    text = (
        client.post("/v1/chat/completions", json={**chat, "stream": True}).raise_for_status().text
    )
    assert text.endswith("data: [DONE]\n\n")
    completion = {"model": MODEL, "prompt": "x = ", "max_tokens": 8, "logprobs": 2, "n": 2}
    client.post("/v1/completions", json=completion).raise_for_status()


def ask_too_much(client: httpx.Client) -> None:
    """More at once than can run and wait; wrong keys, and what is no request."""
    body = {"model": MODEL, "prompt": "a b c ", "max_tokens": 60, "ignore_eos": True}

    def ask(_: int) -> int:
        return client.post("/v1/completions", json=body).status_code

    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(ask, range(12)))
    assert set(statuses) <= {200, 429}
    stranger = {"authorization": "Bearer sk-wrong"}
    assert client.get("/v1/models", headers=stranger).status_code == 401
    assert client.post("/v1/completions", json={"model": MODEL, "n": -1}).status_code == 400


def leave(server: RealServer) -> None:
    """Ask for a long stream, and reset the connection in the midst of it."""
    parts = urlsplit(server.url)
    body = {"model": MODEL, "prompt": "a", "max_tokens": 1000, "stream": True, "ignore_eos": True}
    content = json.dumps(body).encode()
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        assert connection.recv(100)


def expressions() -> list[str]:
    """List what the dashboard asks Prometheus for."""
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def in_a_query(expression: str) -> str:
    """Fill in what Grafana would."""
    filled = expression.replace("$__rate_interval", f"{WINDOW_S}s").replace("$__range", "60s")
    filled = filled.replace("$instance", ".*").replace("$model_name", ".*")
    assert "$" not in filled
    return filled


# ── tests ───────────────────────────────────────────────────────────────────────────────────────


def test_every_panel_shows_figures_of_a_loaded_server(seen: Seen):
    nothing = [
        expression
        for expression, values in seen.values.items()
        if not any(math.isfinite(value) for value in values)
    ]
    assert len(seen.values) > 30
    assert nothing == []


def test_panels_show_what_happened(seen: Seen):
    def largest(part: str) -> float:
        return max(
            value
            for expression, values in seen.values.items()
            if part in expression
            for value in values
            if math.isfinite(value)
        )

    assert largest("vllm:num_requests_running") == MAX_NUM_SEQS
    assert 0 < largest("vllm:num_requests_waiting") <= 2
    assert 0 < largest("vllm:prefix_cache_hits_total") <= 1
    assert 0 < largest('status="429"') < 1
    assert largest('status=~"5.."') == 0
    assert largest("tetrad_ready") == 1
    assert largest("vllm:kv_cache_usage_perc") <= 1


def test_the_dashboards_variables_have_values(seen: Seen):
    assert seen.model_names == [MODEL]
    assert len(seen.instances) == 1


def test_every_alert_is_evaluated_without_error(seen: Seen):
    written = re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    assert [rule["name"] for rule in seen.rules] == written
    assert {rule["health"] for rule in seen.rules} == {"ok"}


def test_a_healthy_server_raises_no_alert(seen: Seen):
    assert seen.healthy.keys() - OF_THE_MACHINE == set()


def test_each_trouble_raises_its_own_alert(seen: Seen):
    assert seen.overloaded.keys() - OF_THE_MACHINE == {"TetradRefusingWork"}
    assert {"TetradNotReady", "TetradEngineRestarted"} <= seen.engine_killed.keys()
    assert "TetradVariantFailed" not in seen.engine_killed
    assert "TetradDown" in seen.ended


def test_alerts_say_what_happened_where(seen: Seen):
    summary = seen.overloaded["TetradRefusingWork"]["annotations"]["summary"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+ answers [\d.]+% of requests with 429", summary)
    summary = seen.engine_killed["TetradEngineRestarted"]["annotations"]["summary"]
    assert summary.startswith(f"The engine of {MODEL} on 127.0.0.1:")


def test_every_metric_is_in_the_table_of_the_page_and_the_other_way_round(seen: Seen):
    page = (MONITORING.parents[1] / "docs/operations.md").read_text()
    told = set(re.findall(r"^\| `((?:vllm:|tetrad_)\w+)`", page, re.MULTILINE))
    found = {
        name if kind != "counter" else f"{name.removesuffix('_total')}_total"
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)", seen.exposition, re.MULTILINE)
    }
    assert found == told


def test_promtool_reads_what_the_server_tells(seen: Seen):
    done = promtool("check", "metrics", stdin=seen.exposition)
    # 3 says that a name could be better: colons are vLLM's.
    assert done.returncode in (0, 3), done.stderr
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("vllm:")]
    assert complaints == []


def test_promtool_accepts_configuration_and_rules(tmp_path: Path):
    (tmp_path / "token").write_text(TOKEN)
    config = write_files(tmp_path, "localhost:8000", tmp_path / "token")
    for arguments in (
        ("check", "config", str(config)),
        ("check", "config", "--syntax-only", str(MONITORING / "prometheus.yml")),
        ("check", "rules", str(MONITORING / "alerts.yml")),
    ):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_for_what_they_should_and_for_nothing_else():
    done = promtool("test", "rules", str(MONITORING / "alerts_test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (MONITORING / "alerts_test.yml").read_text()
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert f'ALERTS{{alertname="{rule["alert"]}"' in tested


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_program("promtool") or "promtool", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
