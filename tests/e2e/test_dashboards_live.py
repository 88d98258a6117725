"""
Dashboards and rules against the real thing: a Prometheus scrapes all five services while they harvest, train and make
a graph; then every query of every panel, every variable and every recording rule must have data.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from dashboard_queries import PanelQuery, alerts, panel_queries, records, variable_queries
from prometheus_server import PrometheusServer, prometheus_server
from small_demo import SmallDemo

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
    """A Prometheus over what another has seen while the services worked."""

    prometheus: PrometheusServer
    start_s: float
    end_s: float

    def values(self, expr: str) -> list[float]:
        """Evaluate a panel's query as Grafana would, over all that was seen."""
        for variable, value in _VARIABLES.items():
            expr = expr.replace(variable, value)
        return self.prometheus.values(expr, self.start_s, self.end_s)


@pytest.fixture(scope="module")
def observed(small_demo: SmallDemo) -> Iterator[Observed]:
    """What was scraped of the services while the small demo ran."""
    with prometheus_server(small_demo.prometheus, {}) as prometheus:
        yield Observed(prometheus, small_demo.start_s, small_demo.end_s)


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

    # At its end a busy machine may miss a scrape of one.
    assert max(observed.values("count(weft_build_info)")) == 5
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
    groups = observed.prometheus.rule_groups()
    assert sum(len(group["rules"]) for group in groups) == len(alerts()) + len(records())
    assert {
        rule["name"]: rule.get("lastError") for group in groups for rule in group["rules"] if rule["health"] != "ok"
    } == {}
    assert observed.values('ALERTS{alertstate="firing"}') == []
