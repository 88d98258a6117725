"""Which features of a graph are interpreted first."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attribution_house import AttributionHouse, attribution_house

from weft_attribution.core.interpretation.scope import features_of_graph
from weft_attribution.core.labels import Place
from weft_common.errors import InvalidArgumentError, NotFoundError


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with attribution_house(tmp_path) as served:
        yield served


async def test_features_of_a_graph_come_by_influence(house: AttributionHouse) -> None:
    """Each feature once, at the place of its most influential node; no errors, tokens or logits."""
    await house.make("g1", node_threshold=1.0, edge_threshold=1.0)
    nodes = (await house.content("g1"))["nodes"]
    best: dict[Place, float] = {}
    for node in nodes:
        if node["node_id"].count("_") == 2 and "error" not in node["node_id"] and node["layer"] != "E":
            layer, index, _ = node["node_id"].split("_")
            place = Place(int(layer), int(index))
            best[place] = min(best.get(place, 2.0), node["influence"])
    features = {place: share for place, share in best.items() if place.layer < 3}
    found = features_of_graph(house.store, "g1", "t")
    assert len(found) == len(set(found)) == len(features) > 3
    assert [features[place] for place in found] == sorted(features.values())


async def test_graph_of_another_transcoder_is_refused(house: AttributionHouse) -> None:
    """Its features would be others; a graph that is not there is named."""
    await house.make("g1")
    with pytest.raises(InvalidArgumentError, match="transcoders/t, not of transcoders/u"):
        features_of_graph(house.store, "g1", "u")
    with pytest.raises(NotFoundError):
        features_of_graph(house.store, "absent", "t")
