"""The dashboard for Grafana, which is generated."""

from __future__ import annotations

import itertools
import json

import pytest

from docs_pages import dashboard
from docs_pages.dashboard import COLUMNS, PAGE, main, render_page


@pytest.fixture
def panels():
    return json.loads(render_page())["panels"]


def test_dashboard_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render_page(), (
        "write it with: python -m docs_pages.dashboard"
    )


def test_check_tells_a_stale_dashboard(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dashboard, "PAGE", tmp_path / "dashboard.json")
    assert main(["--check"]) == 1
    assert "not up to date" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0


def test_panels_have_ids_and_places_of_their_own(panels):
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels) == COLUMNS


def test_every_query_follows_the_variables_above_the_dashboard(panels):
    variables = {one["name"] for one in json.loads(render_page())["templating"]["list"]}
    assert variables == {"datasource", "instance", "model_name"}
    for panel in panels:
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'instance=~"$instance"' in target["expr"]
