"""Recording rules and alerts: valid, tested both ways, explained, and about metrics that services really export."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboard_queries import CHART, RULES, alerts, panel_queries, records, rules, variable_queries
from prometheus_server import prometheus_tool
from scripts.metrics_reference import components, exported_name, metrics_of

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
RULE_TESTS = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks.md"
SUFFIXES = ("_bucket", "_count", "_sum")
# What every Prometheus client exports, and what Prometheus itself makes.
FOREIGN = {"ALERTS", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def _promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([prometheus_tool("promtool"), *arguments], capture_output=True, text=True, check=False)


def _cases(alert: str) -> list[list[Any]]:
    """Return what each rule test expects of an alert."""
    return [
        case.get("exp_alerts") or []
        for path in RULE_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert
    ]


def _exported() -> set[str]:
    return {exported_name(metric) for component in components() for metric in metrics_of(component)}


def _named(expr: str) -> set[str]:
    """Return the series that a query names: what stands before a brace or is one of ours by its name."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    named = {name for name in re.findall(r"([a-zA-Z_:][\w:]*)\s*[{\[]", bare) if name not in ("on", "by")}
    return named | set(re.findall(r"\b(?:weft_\w+|weft:[\w:]+|process_\w+|grpc_server_\w+)", bare))


def test_rules_are_valid() -> None:
    """Prometheus would load both files."""
    checked = _promtool("check", "rules", *map(str, RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path) -> None:
    """Each rule test holds."""
    tested = _promtool("test", "rules", str(path))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", alerts())
def test_alert_is_tested_to_fire_and_to_stay_quiet(alert: str) -> None:
    """A rule that never fires, or always does, is not an alert."""
    cases = _cases(alert)
    assert any(cases), f"no rule test makes {alert} fire"
    assert not all(cases), f"no rule test expects {alert} to stay quiet"


@pytest.mark.parametrize(("alert", "rule"), alerts().items())
def test_alert_tells_all_that_a_person_needs(alert: str, rule: dict[str, Any]) -> None:
    """Severity, what happens, more of it, and where to read what to do, which is there."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"operations/runbooks/#{alert.lower()}"
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert headings.count(alert) == 1
    section = RUNBOOKS.read_text().split(f"## {alert}\n")[1].split("\n## ")[0]
    assert [part for part in ("**Means.**", "**Look.**", "**Do.**", "**Over when**") if part not in section] == []


def test_runbooks_are_of_alerts_only() -> None:
    """A runbook whose alert is gone misleads; the overview lists each alert with its severity."""
    assert set(re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)) == set(alerts())
    overview = (RUNBOOKS.parent / "monitoring.md").read_text()
    listed = dict(re.findall(r"^\| (Weft\w+) \|.*\| (\w+) \|$", overview, re.MULTILINE))
    assert listed == {alert: rule["labels"]["severity"] for alert, rule in alerts().items()}


def test_names_of_records_say_what_they_are() -> None:
    """Recorded series are named level:metric:operation, and each once."""
    assert [name for name in records() if not re.fullmatch(r"weft:\w+:\w+", name)] == []
    assert len(records()) == len(set(records()))


@pytest.mark.parametrize(
    "expr", [rule["expr"] for rule in rules()] + [query.expr for query in (*panel_queries(), *variable_queries())]
)
def test_query_asks_for_what_is_exported(expr: str) -> None:
    """Every series that a rule or panel names is exported by a service or recorded by a rule."""
    known = _exported() | set(records()) | FOREIGN
    known |= {name + suffix for name in known for suffix in SUFFIXES}
    named = {name for name in _named(expr) if name != "label_values"}
    assert named
    assert named - known == set()


def test_every_metric_is_documented() -> None:
    """Each exported metric has a sentence of its own, and a name of the house."""
    for component in components():
        for metric in metrics_of(component):
            (family,) = metric.describe()
            assert family.documentation.endswith("."), exported_name(metric)
            assert exported_name(metric).startswith(("weft_", "grpc_server_"))


def test_chart_ships_what_is_tested() -> None:
    """There are no rules or dashboards in the chart beside the tested ones."""
    assert sorted(path.name for path in (CHART / "rules").iterdir()) == ["alerts.yaml", "recording.yaml"]
    assert sorted(path.name for path in (CHART / "dashboards").iterdir()) == [
        "attribution.json",
        "extraction-and-cache.json",
        "fleet.json",
        "training-run.json",
    ]
