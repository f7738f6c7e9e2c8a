"""A real Prometheus with the files of docker/monitoring, scraping every second.

Its programs are Debian's, unpacked by `scripts/setup-prometheus`, or those on PATH.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import yaml

from tests.service.fakes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "docker/monitoring"
UNPACKED = ROOT / ".prometheus/usr/bin"
SCRAPE_INTERVAL_S = 1.0


def find_program(name: str) -> str | None:
    """Return the path of `prometheus` or `promtool`."""
    return shutil.which(name, path=str(UNPACKED)) or shutil.which(name)


def write_files(folder: Path, target: str, token_file: Path) -> Path:
    """Write the files as they are, but that they are quick and look at this server.

    Alerts fire as soon as what they look for is there, not after minutes of it.
    """
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_INTERVAL_S:.0f}s")
    (scrape,) = config["scrape_configs"]
    scrape["authorization"]["credentials_file"] = str(token_file)
    scrape["static_configs"] = [{"targets": [target]}]
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


class Prometheus:
    """What can be asked of it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=20)

    def close(self) -> None:
        self._client.close()

    def is_there(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._client.get("/status/runtimeinfo").status_code == 200
        return False

    def value(self, expression: str) -> float | None:
        """Return the one value of an expression now; None where there is none."""
        found = self._ask("/query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def values(self, expression: str, start: float, end: float) -> list[float]:
        """Return all values of an expression in a span of time, of all series."""
        found = self._ask("/query_range", query=expression, start=start, end=end, step=1)
        return [float(value) for series in found["result"] for _, value in series["values"]]

    def label_values(self, label: str, series: str) -> list[str]:
        answer = self._client.get(f"/label/{label}/values", params={"match[]": series})
        values: list[str] = answer.raise_for_status().json()["data"]
        return values

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._ask("/rules")["groups"] for rule in group["rules"]]

    def firing(self) -> dict[str, dict[str, Any]]:
        """Return the alerts that fire, by name."""
        alerts = self._ask("/alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in alerts}

    def wait_firing(self, *names: str, limit_s: float = 30) -> dict[str, dict[str, Any]]:
        wait_until(lambda: self.firing().keys() >= set(names), limit_s)
        return self.firing()

    def _ask(self, path: str, **parameters: Any) -> dict[str, Any]:
        told = self._client.get(path, params=parameters).json()
        assert told["status"] == "success", (parameters, told)
        data: dict[str, Any] = told["data"]
        return data


@contextlib.contextmanager
def watching(folder: Path, target: str, token_file: Path) -> Iterator[Prometheus]:
    """Run Prometheus beside a server."""
    config = write_files(folder, target, token_file)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                find_program("prometheus") or "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
        )
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: prometheus.is_there() or process.poll() is not None, limit_s=30)
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield prometheus
    finally:
        prometheus.close()
        process.kill()
        process.wait()
