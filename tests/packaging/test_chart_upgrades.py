"""What must stay from version to version, so that an upgrade exchanges pods and nothing else."""

import pytest
from chart_rig import CHART, COMPONENTS, find, kinds, merged, render

pytestmark = pytest.mark.packaging

# Fields that Kubernetes does not let anybody change. What stands here is released: no edit, only new entries.
SELECTORS = {
    component: {
        "app.kubernetes.io/name": "weft",
        "app.kubernetes.io/instance": "weft",
        "app.kubernetes.io/component": component,
    }
    for component in ("activations", "cache", "trainer", "attribution", "console")
}
SERVICES = {f"weft-{component}" for component in SELECTORS}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labels": {"team": "a"}, "pod": {"labels": {"tier": "b"}}},
        {"fullnameOverride": "circuits"},
        {"image": {"tag": "9.9.9"}},
    ],
)
def test_selectors_are_those_of_every_version(changes: dict[str, object]) -> None:
    """A Deployment's selector cannot be changed, so no value and no version may reach it."""
    deployments = kinds(render(merged(changes)), "Deployment").values()
    found = {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"]["selector"]["matchLabels"]
        for each in deployments
    }
    assert found == SELECTORS
    assert set(found) == set(COMPONENTS)


def test_pods_have_what_selects_them() -> None:
    """Selectors of Deployments, Services and budgets match the labels of the pods that they mean."""
    documents = render(merged({"activations": {"replicas": 2}}))
    for name, deployment in kinds(documents, "Deployment").items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        selector = find(documents, "Service", name)["spec"]["selector"]
        assert {key: value for key, value in selector.items() if key != "weft.dev/leader"}.items() <= labels.items()
    for name, budget in kinds(documents, "PodDisruptionBudget").items():
        labels = find(documents, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_names_that_clients_use_stay() -> None:
    """Services keep their names, which stand in clients' contexts and in certificates."""
    assert set(kinds(render(), "Service")) == SERVICES


def test_upgrade_notes_have_the_charts_version() -> None:
    """Every version says in UPGRADING.md what an upgrade to it needs."""
    (line,) = (line for line in (CHART / "Chart.yaml").read_text().splitlines() if line.startswith("version: "))
    assert f"## {line.removeprefix('version: ')}\n" in (CHART / "UPGRADING.md").read_text()
