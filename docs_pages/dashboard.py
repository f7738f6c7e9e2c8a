"""Writes docker/monitoring/grafana-dashboard.json from `dashboard_panels`.

python -m docs_pages.dashboard            writes the dashboard
python -m docs_pages.dashboard --check    fails where it is not up to date

Grafana's own export is 40 lines a panel, most of them defaults, which are added here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs_pages.dashboard_panels import GROUPS
from docs_pages.generated_page import run

if TYPE_CHECKING:
    from docs_pages.dashboard_panels import Panel

PAGE = Path(__file__).parent.parent / "docker" / "monitoring" / "grafana-dashboard.json"

COLUMNS = 24  # of Grafana's grid
PANELS_A_ROW = 3
HEIGHT = 8
SCHEMA_VERSION = 39  # Grafana 10.3; later versions bring older dashboards up to theirs

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def render_page() -> str:
    """Return the dashboard as Grafana imports it."""
    dashboard = {
        "uid": "tetrad",
        "title": "Tetrad",
        "tags": ["tetrad"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # one cross-hair for all panels
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": _panels(),
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def _variables() -> list[dict[str, Any]]:
    datasource = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    return [
        datasource,
        _variable("instance", "Server", "label_values(tetrad_ready, instance)"),
        _variable(
            "model_name",
            "Model",
            'label_values(tetrad_variant_state{instance=~"$instance"}, model_name)',
        ),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,  # whenever the time that is shown changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    top = 0
    for group in GROUPS:
        row = {"type": "row", "title": group.title, "collapsed": False, "panels": []}
        panels.append({"id": len(panels) + 1, **row, "gridPos": _place(0, top, COLUMNS, 1)})
        top += 1
        width = COLUMNS // PANELS_A_ROW
        for i, panel in enumerate(group.panels):
            place = _place(
                i % PANELS_A_ROW * width, top + i // PANELS_A_ROW * HEIGHT, width, HEIGHT
            )
            panels.append({"id": len(panels) + 1, **_graph(panel), "gridPos": place})
        top += -(-len(group.panels) // PANELS_A_ROW) * HEIGHT
    return panels


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _graph(panel: Panel) -> dict[str, Any]:
    axis: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.largest is not None:
        axis["max"] = panel.largest
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": axis, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query.expression,
                "legendFormat": query.legend,
                "range": True,
            }
            for i, query in enumerate(panel.queries)
        ],
    }


def main(arguments: list[str]) -> int:
    """Write the dashboard, or with --check compare it; return the exit code."""
    return run(arguments, PAGE, render_page, "docs_pages.dashboard")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
