"""From edges to heads and from heads to pairs of nodes, over a real activations service."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from attribution_house import AttributionHouse, attribution_house
from attribution_real import activations, random_transcoder
from tiny_models import make_llama

from weft.attribution.v1 import steering_pb2
from weft_common.errors import InvalidArgumentError
from weft_store.opening import open_store

PROMPT = "The capital of France is"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    """A tiny Llama, its transcoder, and the graph `g1` of all nodes."""
    make_llama(tmp_path / "models" / "tiny")
    store = open_store(f"file://{tmp_path}/bucket")
    async with activations(tmp_path, tmp_path / "models") as runner:
        await random_transcoder(store, tmp_path, runner, "tiny", "t", prompt=PROMPT, num_features=64, active=8)
        async with attribution_house(tmp_path, runner=runner, max_prompt_tokens=64) as served:
            await served.make("g1", PROMPT, node_threshold=1.0, edge_threshold=1.0)
            yield served


async def test_edge_is_split_and_head_explained(house: AttributionHouse) -> None:
    """Parts add up to the graph's own edge, pairs to the model's own score; the commands say the same."""
    content = await house.content()
    kinds = {node["node_id"]: node["feature_type"] for node in content["nodes"]}
    seen = set()
    for link in sorted(content["links"], key=lambda link: -abs(link["weight"])):
        pair = kinds[link["source"]], kinds[link["target"]]
        if pair in seen:
            continue
        seen.add(pair)
        found = await house.client.graphs.split_edge("g1", source=link["source"], target=link["target"], max_parts=7)
        assert found.weight == pytest.approx(link["weight"], rel=1e-5)
        assert found.total == pytest.approx(found.weight, rel=1e-3, abs=1e-5)
        assert found.direct + found.rest + sum(part.value for part in found.parts) == pytest.approx(found.total)
        assert all(abs(a.value) >= abs(b.value) for a, b in pairwise(found.parts))
        for layer in found.layers:
            assert layer.bypass + sum(layer.values) == pytest.approx(found.total)
    assert len(seen) == 6
    told = await house.text("graphs", "edge", "g1", link["source"], link["target"])
    assert "through no head" in told
    score = await house.client.graphs.explain_attention(
        "g1", layer=2, head=1, query_position=4, key_position=2, max_pairs=5
    )
    assert score.total == pytest.approx(score.score, rel=1e-3, abs=1e-4)
    assert sum(pair.value for pair in score.pairs) + score.rest == pytest.approx(score.total)
    assert sum(kinds.value for kinds in score.kinds) == pytest.approx(score.total)
    assert len(score.pairs) == len(score.query_nodes) == len(score.key_nodes) == 5
    assert 0 < score.pattern < 1
    table = await house.text("graphs", "attention", "g1", "--layer", "2", "--head", "1", "--query", "4", "--key", "0")
    assert "attention paid" in table


async def test_service_holds_what_is_held(house: AttributionHouse) -> None:
    """With all held the real service moves every node as the edges say; with some held or none it does not."""
    nodes = (await house.content())["nodes"]
    features = [node["node_id"] for node in nodes if node["feature_type"] == "cross layer transcoder"]
    change = steering_pb2.FeatureChange(node_ids=features[:3], factor=0.0)
    held = await house.client.graphs.steer("g1", changes=[change], held=(0, 2), freeze_attention=True)
    measured = np.array([each.measured for each in (*held.nodes, *held.logits)])
    predicted = np.array([each.predicted for each in (*held.nodes, *held.logits)])
    np.testing.assert_allclose(measured, predicted, rtol=2e-3, atol=2e-4 * np.abs(predicted).max())
    some = await house.client.graphs.steer("g1", changes=[change], held=(0, 1))
    free = await house.client.graphs.steer("g1", changes=[change])
    for found, other in ((some, held), (free, some)):
        difference = [a.measured - b.measured for a, b in zip(found.logits, other.logits, strict=True)]
        assert np.abs(difference).max() > 1e-6
    operation = await house.client.graphs.measure_faithfulness("g1", num_nodes=5)
    trust = await house.client.operations.wait(operation)
    assert isinstance(trust, steering_pb2.Faithfulness)
    assert trust.spearman_direct > 0.99


async def test_what_is_not_there_is_refused(house: AttributionHouse) -> None:
    """Heads, positions and nodes that are not there are named."""
    content = await house.content()
    logit = content["nodes"][-1]["node_id"]
    token = next(node["node_id"] for node in content["nodes"] if node["node_id"].startswith("E_"))
    for source, target in ((logit, logit), (token, token), ("x", logit)):
        with pytest.raises(InvalidArgumentError):
            await house.client.graphs.split_edge("g1", source=source, target=target)
    for asked in ((9, 0, 1, 0), (0, 9, 1, 0), (0, 0, 99, 0), (0, 0, 1, 2)):
        layer, head, query, key = asked
        with pytest.raises(InvalidArgumentError):
            await house.client.graphs.explain_attention(
                "g1", layer=layer, head=head, query_position=query, key_position=key
            )
