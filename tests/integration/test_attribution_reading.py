"""Finished graphs read through client and command: parts, paths, summaries, comparisons."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attribution_house import AttributionHouse, attribution_house
from attribution_rig import make_transcoder

from weft.attribution.v1 import reading_pb2
from weft_attribution.core.comparing import align
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with attribution_house(tmp_path) as served:
        yield served


async def test_part_of_a_graph_is_scored(house: AttributionHouse) -> None:
    """All features score as the graph does, none leave the features' influence to errors; the command says the same."""
    statistics = (await house.make(node_threshold=1.0, edge_threshold=1.0)).statistics
    nodes = (await house.content())["nodes"]
    features = [node["node_id"] for node in nodes if node["feature_type"] == "cross layer transcoder"]
    found = await house.client.graphs.score("g1", node_ids=features)
    assert found.whole.replacement_score == pytest.approx(statistics.replacement_score)
    assert found.subgraph.completeness_score == pytest.approx(statistics.completeness_score, abs=1e-3)
    none = await house.client.graphs.score("g1", node_ids=[])
    assert (none.num_features, none.influence_share) == (0, 0)
    assert none.subgraph.replacement_score < found.subgraph.replacement_score
    part = await house.json("graphs", "score", "g1", "--pin", features[0], "--pin", nodes[-1]["node_id"])
    assert part["num_features"] == 1
    assert "replacement" in await house.text("graphs", "score", "g1", "--pin", features[0])
    with pytest.raises(InvalidArgumentError, match="no node"):
        await house.client.graphs.score("g1", node_ids=["9_9_9"])
    with pytest.raises(NotFoundError):
        await house.client.graphs.score("absent", node_ids=[])


async def test_paths_join_two_nodes(house: AttributionHouse) -> None:
    """Paths come strongest first, along edges of the graph, with weights of its file; what has no paths is refused."""
    await house.make(node_threshold=1.0, edge_threshold=1.0)
    content = await house.content()
    weights = {(link["source"], link["target"]): link["weight"] for link in content["links"]}
    logit = next(node["node_id"] for node in content["nodes"] if node["is_target_logit"])
    token = next(node["node_id"] for node in content["nodes"] if node["node_id"].startswith("E_"))
    found = await house.client.graphs.paths("g1", source=token, target=logit, num_paths=7)
    assert len(found.paths) == 7
    strengths = [path.strength for path in found.paths]
    assert strengths == sorted(strengths, reverse=True)
    assert sum(strengths) <= found.total_strength <= 1
    for path in found.paths:
        along = [weights[pair] for pair in zip(path.node_ids, path.node_ids[1:], strict=False)]
        np.testing.assert_allclose(path.weights, along, rtol=1e-5)
    table = await house.text("graphs", "paths", "g1", token, logit, "--num-paths", "2")
    assert " > ".join(found.paths[0].node_ids) in table
    for source, target in ((logit, logit), (token, token), ("x", logit)):
        with pytest.raises(InvalidArgumentError):
            await house.client.graphs.paths("g1", source=source, target=target)
    with pytest.raises(InvalidArgumentError, match="num_paths"):
        await house.client.graphs.paths("g1", source=token, target=logit, num_paths=101)


async def test_summary_groups_every_node(house: AttributionHouse, tmp_path: Path) -> None:
    """A dozen groups of features at most, ends beside them, flows that add up; a file of it opens with its groups."""
    statistics = (await house.make(node_threshold=1.0, edge_threshold=1.0)).statistics
    for likeness in (reading_pb2.LIKENESS_BOTH, reading_pb2.LIKENESS_DECODER, reading_pb2.LIKENESS_GRAPH):
        found = await house.client.graphs.summarize("g1", max_supernodes=4, likeness=likeness)
        assert sum(group.num_nodes for group in found.supernodes) == statistics.num_nodes
        features = [group for group in found.supernodes if group.kind == reading_pb2.SUPERNODE_KIND_FEATURES]
        assert len(features) == 4
        assert all(len(group.raised_tokens) == 3 for group in features)
        assert sum(flow.influence for flow in found.flows) == pytest.approx(
            sum(group.influence for group in found.supernodes)
        )
        for place, group in enumerate(found.supernodes):
            out = sum(flow.influence for flow in found.flows if flow.source == place)
            assert out == pytest.approx(group.influence)
    assert 0.8 <= found.influence_share < 1
    assert found.summary.replacement_score < found.whole.replacement_score
    file = tmp_path / "summary.json"
    table = await house.text("graphs", "summary", "g1", "--max-supernodes", "3", "--output", str(file))
    assert "supernodes hold" in table
    params = json.loads(file.read_text())["qParams"]
    assert len(params["supernodes"]) == 3
    assert {node for _, *nodes in params["supernodes"] for node in nodes} <= set(params["pinnedIds"])
    scored = await house.json("graphs", "score", "g1", "--pins", str(file))
    assert scored["influence_share"] >= 0.8
    with pytest.raises(InvalidArgumentError, match="max_supernodes"):
        await house.client.graphs.summarize("g1", max_supernodes=13)
    file.write_text("[]")
    assert (await house.weft("graphs", "score", "g1", "--pins", str(file))).exit_code == 2


async def test_two_graphs_stand_side_by_side(house: AttributionHouse) -> None:
    """A graph beside itself is all the same; beside another prompt's, features are counted as their files have them."""
    one = await house.make("g1", node_threshold=1.0, edge_threshold=1.0)
    two = await house.make("g2", "capitol", node_threshold=1.0, edge_threshold=1.0)
    same = await house.client.graphs.compare("g1", "g1")
    assert same.overlap == pytest.approx(1)
    assert (same.num_first_only, same.num_other_only) == (0, 0)
    assert all(node.node_id == node.other_node_id for node in same.nodes)
    assert all(edge.weight == edge.other_weight for edge in same.edges)
    found = await house.client.graphs.compare("g1", "g2", max_nodes=500, max_edges=20_000)
    first, other = await house.content("g1"), await house.content("g2")
    features = [node for node in found.nodes if node.activation or node.other_activation]
    common = [node for node in features if node.node_id and node.other_node_id]
    assert found.num_common == len(common) > 0
    assert all(node.node_id == node.other_node_id for node in common)
    assert found.num_common + found.num_first_only == one.statistics.num_features
    assert found.num_common + found.num_other_only == two.statistics.num_features
    assert 0 < found.overlap < 1
    assert sum(node.influence for node in found.nodes) == pytest.approx(1)
    assert sum(node.other_influence for node in found.nodes) == pytest.approx(1)
    differ = [abs(node.influence - node.other_influence) for node in found.nodes]
    assert differ == sorted(differ, reverse=True)
    for content, mine, weight in ((first, "node_id", "weight"), (other, "other_node_id", "other_weight")):
        names = [getattr(node, mine) for node in found.nodes]
        told = {(names[edge.source], names[edge.target]): getattr(edge, weight) for edge in found.edges}
        for link in content["links"]:
            assert told[link["source"], link["target"]] == pytest.approx(link["weight"], rel=1e-5)
    assert "influence in common" in await house.text("graphs", "compare", "g1", "g2")


async def test_graph_of_a_model_that_has_changed_is_not_frozen_again(house: AttributionHouse) -> None:
    """What a graph was computed from is captured from the very model that it was made with, or not at all."""
    make_transcoder(house.store, "any", house.runner.reference, revision="")
    await house.make("g1", transcoder="transcoders/any")
    content = await house.content()
    ends = {"source": content["links"][0]["source"], "target": content["links"][0]["target"]}
    assert (await house.client.graphs.split_edge("g1", **ends)).total
    await house.client.graphs.delete("g1")
    await house.make("g1", transcoder="transcoders/any")
    house.runner.info = replace(house.runner.info, revision="r9")
    with pytest.raises(FailedPreconditionError, match=r"revision r1.*r9"):
        await house.client.graphs.split_edge("g1", **ends)


async def test_graphs_of_two_transcoders_are_not_compared(house: AttributionHouse) -> None:
    """Features of two transcoders have nothing to do with each other."""
    make_transcoder(house.store, "u", house.runner.reference, seed=5)
    await house.make("g1")
    await house.make("g2", transcoder="transcoders/u")
    with pytest.raises(FailedPreconditionError, match="one model and transcoder"):
        await house.client.graphs.compare("g1", "g2")


def test_positions_belong_together_where_tokens_do() -> None:
    """Equal tokens, and as many that replace others; more or fewer have nobody."""
    assert align([1, 2, 3], [1, 2, 3]) == (0, 1, 2)
    assert align([1, 7, 8, 3], [1, 9, 6, 3]) == (0, 1, 2, 3)
    assert align([1, 7, 8, 3], [1, 9, 3]) == (0, -1, -1, 2)
    assert align([1, 3], [1, 9, 3]) == (0, 2)
