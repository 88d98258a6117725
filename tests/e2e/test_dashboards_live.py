"""
Dashboards and rules against the real thing: a Prometheus scrapes all five services while they harvest, train and make
a graph; then every query of every panel, every variable and every recording rule must have data.
"""

import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from dashboard_queries import PanelQuery, alerts, panel_queries, records, variable_queries
from embedded_weft import SMALL, Embedded, demo_folder, run_demo
from prometheus_server import PrometheusServer, prometheus_server

pytestmark = [pytest.mark.e2e, pytest.mark.real, pytest.mark.timeout(1500)]

# What Grafana puts in for its variables when everything is chosen.
_VARIABLES = {
    "$namespace": ".*",
    "$instance": ".*",
    "$run": ".*",
    "$__rate_interval": "30s",
    "$__range": "30m",
}


@dataclass(frozen=True)
class Observed:
    """A Prometheus that has seen the services work."""

    prometheus: PrometheusServer
    start_s: float

    def values(self, expr: str) -> list[float]:
        """Evaluate a panel's query as Grafana would, over all that was seen."""
        for variable, value in _VARIABLES.items():
            expr = expr.replace(variable, value)
        return self.prometheus.values(expr, self.start_s)


@contextmanager
def _page_open(url: str) -> Iterator[None]:
    """Ask the console for its runs again and again, as a browser with the page open does; nobody is signed in."""
    closed = threading.Event()

    def look() -> None:
        while not closed.wait(0.5):
            try:
                urllib.request.urlopen(f"{url}api/runs", timeout=5).close()
            except urllib.error.HTTPError as answer:
                answer.close()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Observed]:
    """Run a small demo on services that Prometheus scrapes."""
    run: Embedded = demo_folder(tmp_path_factory.mktemp("observed"), models_dir)
    started = run.weft("up")
    assert started.returncode == 0, started.stderr
    try:
        endpoints = run.endpoints
        ports = {service: endpoint.metrics_port for service, endpoint in endpoints.services.items()}
        start_s = time.time()
        with prometheus_server(tmp_path_factory.mktemp("prometheus"), ports) as prometheus:
            with _page_open(f"http://{endpoints['console'].target}/"):
                run_demo(run, *SMALL)
            # The last figures are scraped, then the rules are evaluated on them.
            time.sleep(5)
            yield Observed(prometheus, start_s)
    finally:
        stopped = run.weft("down")
        assert stopped.returncode == 0, stopped.stderr


@pytest.mark.parametrize("query", panel_queries(), ids=str)
def test_panel_has_data(observed: Observed, query: PanelQuery) -> None:
    """Every query of every panel shows at least one number."""
    assert observed.values(query.expr), query.expr


@pytest.mark.parametrize("record", records())
def test_recording_rule_has_data(observed: Observed, record: str) -> None:
    """Every recording rule gives at least one number."""
    assert observed.values(record)


@pytest.mark.parametrize("query", variable_queries(), ids=str)
def test_variable_has_values(observed: Observed, query: PanelQuery) -> None:
    """Every variable of a dashboard has something to choose."""
    parts = re.fullmatch(r"label_values\((?P<selector>.+), (?P<label>\w+)\)", query.expr)
    assert parts is not None, query.expr
    selector = parts["selector"].replace("$namespace", ".*")
    assert observed.prometheus.label_values(parts["label"], selector, observed.start_s)


def test_dashboards_count_what_happened(observed: Observed) -> None:
    """The figures are those of the demo: five replicas, a finished graph, nothing corrupt, one run that learned."""
    by_panel = {(query.dashboard, query.panel): query.expr for query in panel_queries()}

    def last(dashboard: str, panel: str) -> float:
        return observed.values(by_panel[dashboard, panel])[-1]

    assert sum(observed.prometheus.values("count(weft_build_info)", observed.start_s)[-1:]) == 5
    assert last("attribution", "Graphs made") >= 1
    assert last("attribution", "Graphs that failed") == 0
    assert last("extraction-and-cache", "Corrupt objects") == 0
    assert last("extraction-and-cache", "Incomplete captures") == 0
    assert last("extraction-and-cache", "Tokens") >= 4000
    assert last("extraction-and-cache", "Compression") > 1
    assert last("fleet", "Certificates about to expire") == 0
    losses = observed.values(by_panel["training-run", "Loss"])
    assert losses[-1] < losses[0]


def test_rules_are_healthy_and_no_alert_fires(observed: Observed) -> None:
    """Prometheus evaluates every rule without an error, and an undisturbed day raises no alert."""
    groups = observed.prometheus.get("rules")["groups"]
    assert sum(len(group["rules"]) for group in groups) == len(alerts()) + len(records())
    assert {
        rule["name"]: rule.get("lastError") for group in groups for rule in group["rules"] if rule["health"] != "ok"
    } == {}
    assert observed.values('ALERTS{alertstate="firing"}') == []
