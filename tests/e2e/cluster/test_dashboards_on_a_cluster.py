"""
Dashboards and rules on a cluster: a Prometheus scrapes the pods as the chart's monitors say while the whole path is
gone; then every query of every panel, every variable and every rule must have data.
"""

import re

import pytest
from cluster_rig.release import SERVICES, Release
from cluster_rig.story import Story
from dashboard_queries import PanelQuery, alerts, panel_queries, records, variable_queries

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# What Grafana puts in for its variables when everything is chosen.
_VARIABLES = {"$namespace": ".*", "$instance": ".*", "$run": ".*", "$__rate_interval": "30s", "$__range": "30m"}
_METRIC = re.compile(r"\b(?:(?:weft|grpc|process)_[a-z0-9_]+|weft:[a-z0-9_:]+)")


def values(story: Story, expr: str) -> list[float]:
    """Evaluate a panel's query as Grafana would, over the whole story."""
    for variable, value in _VARIABLES.items():
        expr = expr.replace(variable, value)
    return story.prometheus.values(expr, story.start_s, story.end_s)


@pytest.mark.parametrize("query", panel_queries(), ids=str)
def test_panel_has_data(story: Story, query: PanelQuery) -> None:
    """Every query of every panel shows at least one number."""
    assert values(story, query.expr), query.expr


@pytest.mark.parametrize("record", records())
def test_recording_rule_has_data(story: Story, record: str) -> None:
    """Every recording rule gives at least one number."""
    assert values(story, record)


@pytest.mark.parametrize("query", variable_queries(), ids=str)
def test_variable_has_values(story: Story, query: PanelQuery) -> None:
    """Every variable of a dashboard has something to choose."""
    parts = re.fullmatch(r"label_values\((?P<selector>.+), (?P<label>\w+)\)", query.expr)
    assert parts is not None, query.expr
    selector = parts["selector"].replace("$namespace", ".*")
    assert story.prometheus.label_values(parts["label"], selector, story.start_s)


@pytest.mark.parametrize("alert", alerts())
def test_alert_has_what_it_looks_at(story: Story, alert: str) -> None:
    """Every series that an alert's expression names is there, so that its silence means something."""
    labels = re.compile(r"(by|on|without|ignoring) *\([^)]*\)")
    named = set(_METRIC.findall(labels.sub("", alerts()[alert]["expr"])))
    assert named
    assert {name for name in named if not values(story, name)} == set()


def test_rules_are_healthy_and_no_alert_fires(story: Story) -> None:
    """Prometheus evaluates every rule without an error, and an undisturbed story raises no alert."""
    groups = story.prometheus.get("rules")["groups"]
    assert sum(len(group["rules"]) for group in groups) == len(alerts()) + len(records())
    assert [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"] == []
    assert values(story, 'ALERTS{alertstate="firing"}') == []


def test_monitors_find_every_service(story: Story, release: Release) -> None:
    """Each service's pods are scraped under the job and the namespace that rules and dashboards count by."""
    for service in SERVICES:
        namespace, job = release.kubectl.namespace, release.service(service)
        found = values(story, f'min(up{{namespace="{namespace}", job="{job}"}})')
        assert found, service
        assert found[-1] == 1, service


def test_monitors_find_every_rank(story: Story) -> None:
    """Each pod of the run was scraped while it trained, though it is gone by now."""
    assert {pod: 1.0 in values(story, f'up{{pod="{pod}"}}') for pod in story.rank_pods} == dict.fromkeys(
        story.rank_pods, True
    )


def test_figures_are_those_of_the_story(story: Story) -> None:
    """One graph, one run that learned, and the harvest's tokens; nothing corrupt, nothing incomplete."""
    by_panel = {(query.dashboard, query.panel): query.expr for query in panel_queries()}

    def last(dashboard: str, panel: str) -> float:
        return values(story, by_panel[dashboard, panel])[-1]

    assert last("attribution", "Graphs made") >= 1
    assert last("attribution", "Graphs that failed") == 0
    assert last("extraction-and-cache", "Corrupt objects") == 0
    assert last("extraction-and-cache", "Incomplete captures") == 0
    assert last("extraction-and-cache", "Tokens") >= 2000
    assert last("fleet", "Certificates about to expire") == 0
    losses = values(story, by_panel["training-run", "Loss"])
    assert losses[-1] < losses[0]
