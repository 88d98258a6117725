"""Replicas: autoscalers, disruption budgets, rollouts."""

import importlib
from typing import Any

import pytest
import yaml
from chart_rig import CHART, COMPONENTS, Document, find, kinds, merged, render

from weft_common.metrics import REGISTRY

pytestmark = pytest.mark.packaging

SCALED = ("activations", "cache", "attribution")


def autoscaled(component: str, **values: Any) -> list[Document]:
    return render(merged({component: {"autoscaling": {"enabled": True, **values}}}))


def test_nothing_scales_by_itself_by_default() -> None:
    """Autoscaling needs metrics that not every cluster offers, so it is asked for."""
    assert not kinds(render(), "HorizontalPodAutoscaler")


@pytest.mark.parametrize("component", SCALED)
def test_autoscaler_replaces_the_replicas(component: str) -> None:
    """The Deployment says no number, which each upgrade would set back; the autoscaler has the bounds."""
    documents = autoscaled(component, minReplicas=2, maxReplicas=5, scaleDownSeconds=90)
    assert "replicas" not in find(documents, "Deployment", f"weft-{component}")["spec"]
    spec = find(documents, "HorizontalPodAutoscaler", f"weft-{component}")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"weft-{component}"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 90


def test_activations_scale_by_queue_and_bytes() -> None:
    """By default the queue's depth and the bytes in flight, as an average of the pods."""
    spec = find(autoscaled("activations"), "HorizontalPodAutoscaler", "weft-activations")["spec"]
    found = {each["pods"]["metric"]["name"]: each["pods"]["target"] for each in spec["metrics"]}
    assert {each["type"] for each in spec["metrics"]} == {"Pods"}
    assert found == {
        "weft_queue_depth": {"type": "AverageValue", "averageValue": "4"},
        "weft_inflight_bytes": {"type": "AverageValue", "averageValue": "64Mi"},
    }


def test_attribution_scales_by_waiting_graphs() -> None:
    """Graphs that wait for a replica, told apart from those that are worked on by a label."""
    spec = find(autoscaled("attribution"), "HorizontalPodAutoscaler", "weft-attribution")["spec"]
    waiting = spec["metrics"][0]["pods"]["metric"]
    assert waiting == {"name": "weft_operations", "selector": {"matchLabels": {"state": "waiting"}}}


@pytest.mark.parametrize("component", SCALED)
def test_default_metrics_are_exported(component: str) -> None:
    """The names that autoscalers ask for by default are of metrics that the services have."""
    for module in ("weft_activations.core.metrics", "weft_common.metrics"):
        importlib.import_module(module)
    exported = {family.name for family in REGISTRY.collect()}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {metric["name"] for metric in values[component]["autoscaling"]["metrics"]} <= exported


def test_metrics_can_be_external_and_have_other_names() -> None:
    """External metrics are selected by namespace and service, so that two releases do not scale each other."""
    metrics = [{"name": "weft_waiting", "selector": {"state": "waiting"}, "averageValue": "7"}]
    documents = autoscaled("attribution", metricType="External", metrics=metrics)
    (metric,) = find(documents, "HorizontalPodAutoscaler", "weft-attribution")["spec"]["metrics"]
    assert metric["external"] == {
        "metric": {
            "name": "weft_waiting",
            "selector": {
                "matchLabels": {"namespace": "interpretability", "service": "weft-attribution", "state": "waiting"}
            },
        },
        "target": {"type": "AverageValue", "averageValue": "7"},
    }


def test_several_replicas_have_a_disruption_budget() -> None:
    """More than one replica is kept from going at once, by number or by autoscaler; one alone would block drains."""
    several = {name: {"replicas": 3} for name in COMPONENTS}
    budgets = kinds(render(merged(several)), "PodDisruptionBudget")
    assert set(budgets) == {f"weft-{name}" for name in several}
    for name, budget in budgets.items():
        spec = budget["spec"]
        assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
        assert spec["selector"]["matchLabels"]["app.kubernetes.io/component"] == name.removeprefix("weft-")
    alone = {name: {"replicas": 1} for name in several}
    assert not kinds(render(merged(alone)), "PodDisruptionBudget")
    scaled = merged({**alone, "cache": {"replicas": 1, "autoscaling": {"enabled": True, "minReplicas": 2}}})
    assert set(kinds(render(scaled), "PodDisruptionBudget")) == {"weft-cache"}


def test_disruption_budget_follows_the_values() -> None:
    """Another number, or none at all."""
    budgets = kinds(render(CHART / "ci" / "everything-values.yaml"), "PodDisruptionBudget")
    assert budgets["circuits-cache"]["spec"]["maxUnavailable"] == 2
    assert "circuits-attribution" not in budgets


def test_services_are_exchanged_without_a_gap() -> None:
    """A new replica is ready before an old one goes; a new controller then waits for the lead of the old one."""
    rollouts = {
        component: find(render(), "Deployment", f"weft-{component}")["spec"]["strategy"]["rollingUpdate"]
        for component in COMPONENTS
    }
    assert all(rollout == {"maxSurge": 1, "maxUnavailable": 0} for rollout in rollouts.values())


def test_controller_with_ranks_of_its_own_goes_first() -> None:
    """With the local launcher there is no lead to wait for, and no room for two on a node is needed."""
    documents = render(merged({"trainer": {"launcher": "local"}}))
    rollout = find(documents, "Deployment", "weft-trainer")["spec"]["strategy"]["rollingUpdate"]
    assert rollout == {"maxSurge": 0, "maxUnavailable": 1}
