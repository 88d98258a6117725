"""Dashboards: made by their code, and fit for people to read."""

import json
from pathlib import Path

import pytest
import yaml
from dashboard_queries import DASHBOARDS, PanelQuery, panel_queries, panels
from deploy.grafana.dashboards import FOLDER, rendered

pytestmark = pytest.mark.packaging

PROVISIONING = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "provisioning"


def test_committed_dashboards_are_what_their_code_makes() -> None:
    """Nobody edits the JSON: `python -m deploy.grafana` makes it."""
    committed = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert committed == rendered()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_has_the_variables_of_all(path: Path) -> None:
    """Data source, namespace and instance can be chosen everywhere, and nothing is bound to one data source."""
    board = json.loads(path.read_text())
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names[:3] == ["datasource", "namespace", "instance"]
    assert board["uid"] == f"weft-{path.stem}"
    sources = {panel["datasource"]["uid"] for panel in panels(path)}
    assert sources == {"${datasource}"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_say_what_they_show(path: Path) -> None:
    """Each panel has a title of its own, a sentence, a unit, a legend for every series and a number."""
    numbers = [panel["id"] for panel in json.loads(path.read_text())["panels"]]
    assert len(numbers) == len(set(numbers))
    titles = [panel["title"] for panel in panels(path)]
    assert len(titles) == len(set(titles))
    for panel in panels(path):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap(path: Path) -> None:
    """No two panels share a cell of Grafana's grid, and none sticks out of its 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(path.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("query", panel_queries(), ids=str)
def test_query_keeps_to_the_chosen_namespaces(query: PanelQuery) -> None:
    """Two releases in two namespaces never mix in a panel."""
    assert 'namespace=~"$namespace"' in query.expr


def test_provisioning_fits_the_dashboards() -> None:
    """Grafana in compose gets one default Prometheus, and reads dashboards from the folder that compose mounts."""
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "weft.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "weft.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards/weft"
    assert provider["allowUiUpdates"] is False
