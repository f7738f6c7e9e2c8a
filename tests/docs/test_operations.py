"""docs/operations.md, the alerts, the dashboard and Compose's files, held against each other.

Whether Prometheus understands them is tested in `tests/end_to_end/test_monitoring.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
MONITORING = DOCKER / "monitoring"
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
METRIC = re.compile(r"\b(?:vllm:|tetrad_)\w+")
TIME = re.compile(r"\b(?:half an hour|(?<!quarter of )an hour|quarter of an hour|[a-z]+ minutes)\b")
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]


def metrics_of_the_page() -> set[str]:
    return set(re.findall(r"^\| `((?:vllm:|tetrad_)\w+)`", PAGE, re.MULTILINE))


def unknown_metrics(text: str) -> set[str]:
    """Find the metrics that the page does not have; a histogram is asked for by its parts."""
    known = metrics_of_the_page()
    return {
        name
        for name in METRIC.findall(text)
        if name not in known and re.sub(r"_(bucket|sum|count)$", "", name) not in known
    }


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_and_has_its_section(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert "$labels.instance" in rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert f"\n### {rule['alert']}\n\n*" in section("Alerts")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_and_its_section_name_the_same_time(rule):
    what_it_means = section("Alerts").partition(f"\n### {rule['alert']}\n\n*")[2].partition("*")[0]
    told = set(TIME.findall(rule["annotations"]["description"]))
    meant = set(TIME.findall(what_it_means.replace("\n", " ")))
    assert not told or not meant or told == meant


def test_the_page_has_each_event_of_batches_and_of_what_reads_forms():
    rooms = (ROOT / "service" / name for name in ("batches", "grammars"))
    text = "".join(path.read_text() for room in rooms for path in room.glob("*.py"))
    events = set(re.findall(r"\b(?:log\.\w+|tell)\(\s*\"(\w+)\"", text))
    assert len(events) > 10
    assert {each for each in events if f"`{each}`" not in section("Logs")} == set()


def test_the_page_has_no_alert_that_is_gone():
    assert re.findall(r"^### (\w+)$", section("Alerts"), re.MULTILINE) == [
        rule["alert"] for rule in RULES
    ]


def test_alerts_and_dashboard_ask_for_metrics_of_the_page():
    assert len(metrics_of_the_page()) > 30
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    asked = " ".join(
        [rule["expr"] for rule in RULES]
        + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    )
    assert unknown_metrics(asked) == set()
    assert unknown_metrics("rate(tetrad_nonsense_bucket[5m])") == {"tetrad_nonsense_bucket"}


def test_limits_are_settings_that_exist():
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", section("Limits and deadlines")))
    assert "drain_limit_s" in named
    assert named <= set(Settings.model_fields)


def test_compose_mounts_files_and_volumes_that_exist():
    compose = yaml.safe_load((DOCKER / "compose.monitoring.yaml").read_text())
    volumes = yaml.safe_load((DOCKER / "compose.yaml").read_text())["volumes"] | compose["volumes"]
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (DOCKER / source).is_file() if source.startswith(".") else source in volumes


def test_a_container_is_given_longer_to_stop_than_the_drain_may_take():
    (server,) = [
        service
        for name, service in yaml.safe_load((DOCKER / "compose.yaml").read_text())[
            "services"
        ].items()
        if name == "tetrad"
    ]
    grace_s = float(server["stop_grace_period"].removesuffix("s"))
    assert grace_s >= Settings.model_fields["drain_limit_s"].default + 5
    image = (DOCKER / "Dockerfile").read_text()
    assert "EXPOSE 8000" in image
    assert "/health/ready" in image
    # `docker stop` sends SIGTERM, which drains; a shell between would keep it for itself.
    assert 'ENTRYPOINT ["tetrad"]' in image
    assert "STOPSIGNAL" not in image or "STOPSIGNAL SIGTERM" in image
