"""What Prometheus and Grafana are given: monitors that find pods, and the files of rules/ and dashboards/ unchanged."""

import json

import pytest
import yaml
from chart_rig import CHART, COMPONENTS, find, kinds, merged, render

from weft_trainer.adapters.kubernetes_manifests import PodOptions, work_manifest
from weft_trainer.core.ports import RankJob

pytestmark = pytest.mark.packaging

OPERATOR_KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")


def test_nothing_is_made_where_the_operator_is_missing() -> None:
    """On a cluster without the operator's API the release has none of its objects, nor dashboards."""
    documents = render(apis=())
    assert not [each for each in documents if each["kind"] in OPERATOR_KINDS]
    assert not [name for name in kinds(documents, "ConfigMap") if "dashboard" in name]


def test_monitoring_can_be_forced_and_forbidden() -> None:
    """`always` for GitOps, where helm sees no cluster; `never` leaves it out in spite of the API."""
    forced = render(merged({"monitoring": {"install": "always"}}), apis=())
    assert {each["kind"] for each in forced} >= set(OPERATOR_KINDS)
    forbidden = render(merged({"monitoring": {"install": "never"}}))
    assert not {each["kind"] for each in forbidden} & set(OPERATOR_KINDS)


def test_services_are_scraped_on_the_port_of_the_metrics() -> None:
    """Each ServiceMonitor selects its Service by labels that this has, and a port that it forwards."""
    monitoring = {"scrapeIntervalSeconds": 15, "labels": {"release": "prometheus"}}
    documents = render(merged({"monitoring": monitoring, "trainer": {"launcher": "local"}}))
    monitors = kinds(documents, "ServiceMonitor")
    assert set(monitors) == {f"weft-{component}" for component in COMPONENTS}
    for name, monitor in monitors.items():
        service = find(documents, "Service", name)
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "15s"}
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["interpretability"]}
        assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_ranks_are_scraped_as_the_controller_makes_them() -> None:
    """The PodMonitor selects pods of ranks by labels that they have, and a port that they name."""
    documents = render()
    spec = find(documents, "PodMonitor", "weft-rank")["spec"]
    selector = spec["selector"]["matchLabels"]
    told = find(documents, "ConfigMap", "weft-trainer")["data"]["WEFT_TRAINER_KUBERNETES_POD_LABELS"]
    assert selector.items() <= json.loads(told).items()
    assert selector["app.kubernetes.io/component"] == "rank"
    options = PodOptions(image="i", labels=json.loads(told))
    pod = work_manifest(RankJob("runs/r/attempts/1", "m", 2, {}), "r", options, jobset=False)["spec"]["template"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    (port,) = pod["spec"]["containers"][0]["ports"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert (endpoint["port"], port["containerPort"]) == (port["name"], 9090)
    local = render(merged({"trainer": {"launcher": "local"}}))
    assert not kinds(local, "PodMonitor")


def test_controllers_that_wait_are_scraped_too() -> None:
    """The Service has the leader alone, so a PodMonitor scrapes every controller; the job keeps the Service's name."""
    documents = render(merged({"monitoring": {"scrapeIntervalSeconds": 15}}))
    assert "weft-trainer" not in kinds(documents, "ServiceMonitor")
    spec = find(documents, "PodMonitor", "weft-trainer")["spec"]
    template = find(documents, "Deployment", "weft-trainer")["spec"]["template"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert spec["namespaceSelector"] == {"matchNames": ["interpretability"]}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint.pop("relabelings") == [{"targetLabel": "job", "replacement": "weft-trainer"}]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "15s"}
    assert endpoint["port"] in {port["name"] for port in template["spec"]["containers"][0]["ports"]}


def test_rules_are_the_files_unchanged() -> None:
    """Every file of rules/ is one PrometheusRule, its templates of Prometheus untouched by helm's."""
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CHART / "rules").glob("*.yaml")}
    assert files, "charts/weft/rules has no rules"
    rules = kinds(render(), "PrometheusRule")
    assert {name.removeprefix("weft-"): rule["spec"] for name, rule in rules.items()} == files


def test_dashboards_are_the_files_unchanged() -> None:
    """Every file of dashboards/ is a ConfigMap of its own that Grafana's sidecar finds."""
    files = {path.stem: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert files, "charts/weft/dashboards has no dashboards"
    documents = render(merged({"monitoring": {"dashboardLabel": "grafana"}}))
    for name, text in files.items():
        config = find(documents, "ConfigMap", f"weft-dashboard-{name}")
        assert config["metadata"]["labels"]["grafana"] == "1"
        assert {file: json.loads(found) for file, found in config["data"].items()} == {
            f"weft-{name}.json": json.loads(text)
        }


@pytest.mark.parametrize("part", ["monitors", "rules", "dashboards"])
def test_parts_can_be_left_out(part: str) -> None:
    """Each of monitors, rules and dashboards has a switch of its own."""
    made = {
        "monitors": lambda each: each["kind"] in ("ServiceMonitor", "PodMonitor"),
        "rules": lambda each: each["kind"] == "PrometheusRule",
        "dashboards": lambda each: each["kind"] == "ConfigMap" and "dashboard" in each["metadata"]["name"],
    }
    documents = render(merged({"monitoring": {part: False}}))
    assert {name for name, is_of in made.items() if any(map(is_of, documents))} == set(made) - {part}
