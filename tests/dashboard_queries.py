"""What the committed dashboards and rules ask Prometheus for."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "charts" / "weft"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
RULES = [CHART / "rules" / "recording.yaml", CHART / "rules" / "alerts.yaml"]


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.dashboard}/{self.panel}".replace(" ", "-")


def panels(path: Path) -> Iterator[dict[str, Any]]:
    """Walk the panels of a dashboard, rows left out."""
    return (panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row")


def panel_queries() -> list[PanelQuery]:
    """List every query of every panel of every dashboard."""
    return [
        PanelQuery(path.stem, panel["title"], target["expr"])
        for path in DASHBOARDS
        for panel in panels(path)
        for target in panel["targets"]
    ]


def variable_queries() -> list[PanelQuery]:
    """List the queries that give a dashboard's variables their values."""
    return [
        PanelQuery(path.stem, variable["name"], variable["query"])
        for path in DASHBOARDS
        for variable in json.loads(path.read_text())["templating"]["list"]
        if variable["type"] == "query"
    ]


def rules() -> list[dict[str, Any]]:
    """List every rule, recording rules and alerts."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def records() -> list[str]:
    """Name every recorded series."""
    return [rule["record"] for rule in rules() if "record" in rule]


def alerts() -> dict[str, dict[str, Any]]:
    """Return every alert by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}
