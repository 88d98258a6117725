"""Features changed in the model: predicted beside measured, held and open, and how far a graph can be trusted."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_house import PROMPT, AttributionHouse, attribution_house
from attribution_rig import counted, load_transcoder, make_transcoder
from scipy.stats import spearmanr

from weft.attribution.v1 import steering_pb2, targets_pb2
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

ALL = {"node_threshold": 1.0, "edge_threshold": 1.0}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with attribution_house(tmp_path) as served:
        yield served


async def features_of(house: AttributionHouse, graph_id: str = "g1") -> list[dict[str, Any]]:
    """Feature nodes of a graph's file, from the lowest layer up."""
    nodes = (await house.content(graph_id))["nodes"]
    return [node for node in nodes if node["feature_type"] == "cross layer transcoder"]


def change(*nodes: str, **how: Any) -> steering_pb2.FeatureChange:
    return steering_pb2.FeatureChange(node_ids=nodes, **how)


async def test_all_held_is_what_edges_say_at_every_node(house: AttributionHouse) -> None:
    """With every MLP, pattern and scale held, measured is predicted at each node and logit; left free it is not."""
    await house.make(**ALL)
    features = [node["node_id"] for node in await features_of(house)]
    changes = [change(features[0], features[1], factor=0.0), change(features[4], value=2.0)]
    frozen = await house.client.graphs.steer("g1", changes=changes, held=(0, 2), freeze_attention=True)
    assert [node.node_id for node in frozen.nodes] == features
    measured = np.array([each.measured for each in (*frozen.nodes, *frozen.logits)])
    predicted = np.array([each.predicted for each in (*frozen.nodes, *frozen.logits)])
    assert np.abs(measured).max() > 1e-2
    np.testing.assert_allclose(predicted, measured, rtol=1e-3, atol=1e-5)
    assert frozen.rank_agreement > 0.99
    free = await house.client.graphs.steer("g1", changes=changes)
    assert np.abs([node.measured - node.predicted for node in free.nodes]).max() > 1e-4
    assert all(a.before == pytest.approx(b.before) for a, b in zip(free.nodes, frozen.nodes, strict=True))


async def test_held_layers_do_not_answer(house: AttributionHouse) -> None:
    """With the layers above held, what is measured there changes with the source alone; above them features answer."""
    await house.make(**ALL)
    features = await features_of(house)
    lowest = next(node["node_id"] for node in features if node["layer"] == "0")
    held = await house.client.graphs.steer("g1", changes=[change(lowest, factor=3.0)], held=(0, 1))
    open_ = await house.client.graphs.steer("g1", changes=[change(lowest, factor=3.0)])
    layers = {node["node_id"]: int(node["layer"]) for node in features}

    def of_layer(found: Any, layer: int, what: str) -> list[float]:
        return [getattr(node, what) for node in found.nodes if layers[node.node_id] == layer]

    # Below and at the first layer that could answer nothing differs, at the last one it does.
    for layer in (0, 1):
        np.testing.assert_allclose(of_layer(held, layer, "predicted"), of_layer(open_, layer, "predicted"))
    assert np.abs(np.subtract(of_layer(held, 2, "predicted"), of_layer(open_, 2, "predicted"))).max() > 1e-6
    assert np.abs(np.subtract(of_layer(held, 2, "measured"), of_layer(open_, 2, "measured"))).max() > 1e-6


async def test_patch_takes_the_other_prompts_activation(house: AttributionHouse) -> None:
    """A patch is a value: what the encoder makes of the other prompt's stream, here computed; elsewhere in it too."""
    await house.make(**ALL)
    features = await features_of(house)
    node = features[3]
    layer, index, position = (int(part) for part in node["node_id"].split("_"))
    other = "dapital"
    ids = [token.id for token in await house.runner.tokenize("tiny", other)]
    stream = house.runner.reference.streams(ids)[f"layers.{layer}.mlp_in"]
    tensors = load_transcoder(house.store, "t", 3)
    for at in (position, 2):
        value = float(stream[at] @ tensors[f"W_enc_{layer}"][index] + tensors[f"b_enc_{layer}"][index])
        value = value if value > tensors[f"threshold_{layer}"][index] else 0.0
        source = steering_pb2.PatchFrom(prompt=other, position=None if at == position else at)
        found = await house.client.graphs.steer("g1", changes=[change(node["node_id"], patch=source)])
        expected = await house.client.graphs.steer("g1", changes=[change(node["node_id"], value=value)])
        np.testing.assert_allclose(
            [each.measured for each in found.logits], [each.measured for each in expected.logits], rtol=1e-4, atol=1e-7
        )


async def test_faithfulness_is_measured_and_kept(house: AttributionHouse) -> None:
    """Figures are scipy's over the ablations told; single ablations are those of Steer; the graph keeps the result."""
    await house.make(**ALL)
    operation = await house.client.graphs.measure_faithfulness("g1", num_nodes=5)
    found = await house.client.operations.wait(operation)
    assert isinstance(found, steering_pb2.Faithfulness)
    assert found.num_nodes == len(found.nodes) == 5
    influence = [node.influence for node in found.nodes]
    assert influence == sorted(influence, reverse=True)
    for figure, first, effect in (
        ("spearman", "influence", "effect"),
        ("spearman_frozen", "influence", "effect_frozen"),
        ("spearman_direct", "predicted_direct", "effect_direct"),
    ):
        pairs = [(getattr(node, first), getattr(node, effect)) for node in found.nodes]
        assert getattr(found, figure) == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
    assert found.spearman_direct > 0.99
    for node in found.nodes:
        assert node.effect_direct == pytest.approx(node.predicted_direct, rel=1e-3, abs=1e-6)
    steered = await house.client.graphs.steer("g1", changes=[change(found.nodes[0].node_id, factor=0.0)])
    probabilities = [logit.probability_before for logit in steered.logits]
    effect = np.dot(probabilities, np.abs([logit.measured for logit in steered.logits]))
    assert found.nodes[0].effect == pytest.approx(effect, rel=1e-4)
    kept = (await house.client.graphs.get("g1")).faithfulness
    assert kept == found
    listed = (await anext(house.client.graphs.list())).faithfulness
    assert listed.spearman == found.spearman
    assert not listed.nodes
    again = await house.client.graphs.measure_faithfulness("g1", num_nodes=5)
    assert again.name == operation.name
    assert "rank agreement" in await house.text("graphs", "faithfulness", "g1", "--num-nodes", "3")
    assert "over 3 ablations" in await house.text("graphs", "get", "g1")


async def test_command_steers_supernodes(house: AttributionHouse) -> None:
    """Several nodes of one option are changed alike; layers and patches are read, and what is wrong is refused."""
    await house.make(**ALL)
    first, second, third, *_ = [node["node_id"] for node in await features_of(house)]
    both = await house.json(
        "graphs", "steer", "g1", "--ablate", f"{first},{second}", "--hold", "0-2", "--freeze-attention"
    )
    alone = await house.json(
        "graphs", "steer", "g1", "--ablate", first, "--ablate", second, "--hold", "0-2", "--freeze-attention"
    )
    assert both == alone
    table = await house.text(
        "graphs", "steer", "g1", "--scale", f"{first}=2", "--set", f"{second}=0.5", "--patch", f"{third}={PROMPT}",
        "--show", first, "--show", third,
    )  # fmt: skip
    assert "rank agreement" in table
    for wrong in (["--scale", first], ["--scale", f"{first}=x"], ["--ablate", first, "--hold", "a"], []):
        assert (await house.weft("graphs", "steer", "g1", *wrong)).exit_code == 2


async def test_what_cannot_be_steered_is_refused(house: AttributionHouse) -> None:
    """Nodes that are no features, changes that are not whole, layers that are not there, too many or few nodes."""
    await house.make(**ALL)
    node = (await features_of(house))[0]["node_id"]
    whole = change(node, factor=0.0)
    for options in (
        {"changes": []},
        {"changes": [change(node)]},
        {"changes": [change(factor=0.0)]},
        {"changes": [change("E_19_0", factor=0.0)]},
        {"changes": [change(node, node, factor=0.0)]},
        {"changes": [change(node, value=float("nan"))]},
        {"changes": [change(node, patch=steering_pb2.PatchFrom())]},
        {"changes": [change(node, patch=steering_pb2.PatchFrom(prompt="capital", position=9))]},
        {"changes": [whole], "held": (1, 3)},
        {"changes": [whole], "held": (2, 1)},
        {"changes": [whole], "shown_node_ids": ["E_19_0"]},
    ):
        with pytest.raises(InvalidArgumentError):
            await house.client.graphs.steer("g1", **options)
    for num_nodes in (2, 501):
        with pytest.raises(InvalidArgumentError, match="num_nodes"):
            await house.client.graphs.measure_faithfulness("g1", num_nodes=num_nodes)
    with pytest.raises(NotFoundError):
        await house.client.graphs.measure_faithfulness("absent")
    await house.make("g2", targets=[targets_pb2.Target(feature=targets_pb2.FeatureOfLayer(layer=2, index=3))])
    for call in (house.client.graphs.steer("g2", changes=[whole]), house.client.graphs.measure_faithfulness("g2")):
        with pytest.raises(FailedPreconditionError, match="more than logits"):
            await call


@pytest.mark.parametrize("kind", ["top_k", "joint_top_k"])
async def test_activations_after_steering_are_those_that_are_counted(house: AttributionHouse, kind: str) -> None:
    """A feature that others push out of the largest is silent, whatever its pre-activation; a patch counts too."""
    model = house.runner.reference
    make_transcoder(house.store, "k", model, activation=kind, top_k=4, bias=0.0)
    await house.make(transcoder="transcoders/k", **ALL)
    features = await features_of(house)
    tensors = load_transcoder(house.store, "k", 3)
    fires = counted(kind, 4, tensors)

    def activations(streams: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        pres = [streams[f"layers.{i}.mlp_in"] @ tensors[f"W_enc_{i}"].T + tensors[f"b_enc_{i}"] for i in range(3)]
        return pres, [pre * fired for pre, fired in zip(pres, fires(pres), strict=True)]

    layer, index, position = (int(part) for part in features[0]["node_id"].split("_"))
    ids = [token.id for token in await house.runner.tokenize("tiny", PROMPT)]
    added = {}
    for target in range(layer, 3):
        added[target] = torch.zeros(len(ids), model.d_model, dtype=torch.float64)
        amount = 19.0 * features[0]["activation"]
        added[target][position] = amount * tensors[f"W_dec_{layer}"][index, target - layer]
    tokens, positions = model.embed(ids)
    pres, acts = activations(model.run(tokens + positions, added=added))
    found = await house.client.graphs.steer("g1", changes=[change(features[0]["node_id"], factor=20.0)])
    silenced = 0
    for node in found.nodes:
        place = tuple(int(part) for part in node.node_id.split("_"))
        pre, act = (float(each[place[0]][place[2], place[1]]) for each in (pres, acts))
        assert node.activation_after == pytest.approx(act, rel=1e-4, abs=1e-5)
        silenced += act == 0 < pre
    assert silenced
    other = "dapital"
    other_ids = [token.id for token in await house.runner.tokenize("tiny", other)]
    _, patched = activations(model.streams(other_ids))
    node = features[3]
    layer, index, position = (int(part) for part in node["node_id"].split("_"))
    source = steering_pb2.PatchFrom(prompt=other)
    by_patch = await house.client.graphs.steer("g1", changes=[change(node["node_id"], patch=source)])
    value = float(patched[layer][position, index])
    by_value = await house.client.graphs.steer("g1", changes=[change(node["node_id"], value=value)])
    np.testing.assert_allclose(
        [each.measured for each in by_patch.logits], [each.measured for each in by_value.logits], rtol=1e-4, atol=1e-6
    )
