"""Graphs through gRPC, from the request to the JSON, on a small model that runs in this process."""

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import numpy as np
import pytest
from attribution_rig import NoSequences, ReferenceModel, ReferenceRunner, make_reference_folder, make_transcoder
from google.longrunning import operations_pb2, operations_pb2_grpc
from prometheus_client import CollectorRegistry

from weft.attribution.v1 import messages_pb2, service_pb2, service_pb2_grpc, targets_pb2
from weft.features.v1 import service_pb2 as features_pb2
from weft.features.v1 import service_pb2_grpc as features_pb2_grpc
from weft_attribution.adapters.prometheus_stages import PrometheusStages
from weft_attribution.core import pipeline
from weft_attribution.wiring import registrations
from weft_common.client import aio_channel, error_from_rpc
from weft_common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    WeftError,
)
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.opening import open_store
from weft_store.port import ObjectStore

SCHEMA = json.loads((Path(__file__).parents[1] / "assets" / "graph.schema.json").read_text())
PROMPT = "capital"


@dataclass
class Rig:
    graphs: Any
    features: Any
    operations: Any
    runner: ReferenceRunner
    store: ObjectStore
    registry: CollectorRegistry

    async def done(self, operation: operations_pb2.Operation) -> operations_pb2.Operation:
        while not operation.done:
            operation = await self.operations.WaitOperation(operations_pb2.WaitOperationRequest(name=operation.name))
        return operation

    async def make(self, graph_id: str = "g1", **spec: Any) -> messages_pb2.Graph:
        operation = await self.graphs.CreateGraph(request(graph_id, **spec))
        operation = await self.done(operation)
        assert not operation.HasField("error"), operation.error
        graph = messages_pb2.Graph()
        assert operation.response.Unpack(graph)
        return graph


def request(graph_id: str = "g1", **spec: Any) -> service_pb2.CreateGraphRequest:
    asked = {"model": "models/tiny", "transcoder": "transcoders/t", "prompt": PROMPT, **spec}
    return service_pb2.CreateGraphRequest(graph_id=graph_id, spec=messages_pb2.GraphSpec(**asked))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    model = ReferenceModel(make_reference_folder(tmp_path / "models" / "tiny", "llama"))
    store = open_store(f"file://{tmp_path}/bucket")
    make_transcoder(store, "t", model, jump=True)
    make_transcoder(store, "other-revision", model, revision="r2")
    runner, registry = ReferenceRunner(model), CollectorRegistry()
    wired = registrations(
        store,
        runner,
        tmp_path / "models",
        NoSequences(),
        max_prompt_tokens=20,
        max_features=5000,
        observe=PrometheusStages(registry),
    )
    settings = ServiceSettings(insecure_no_auth=True)
    async with (
        wired as served,
        serving("attribution", settings, served) as server,
        aio_channel(server.target) as channel,
    ):
        yield Rig(
            service_pb2_grpc.AttributionServiceStub(channel),
            features_pb2_grpc.FeatureServiceStub(channel),
            operations_pb2_grpc.OperationsStub(channel),
            runner,
            store,
            registry,
        )


async def refused(call: Any) -> WeftError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def test_graph_is_made_and_told_by_get_list_and_watch(rig: Rig) -> None:
    """A graph's operation ends with its figures; get, list and watch agree, and the JSON is what viewers read."""
    graph = await rig.make()
    assert graph.state == messages_pb2.GRAPH_STATE_SUCCEEDED
    assert not graph.json
    assert 0 < graph.statistics.num_nodes_kept <= graph.statistics.num_nodes
    assert 0 < graph.statistics.replacement_score <= 1
    assert 0 < graph.statistics.completeness_score <= 1
    assert graph.statistics.conservation_error < 1e-5
    assert {item.stage for item in graph.statistics.stage_seconds} == {
        "capture", "features", "sweep", "influence", "store",
    }  # fmt: skip
    found = await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g1"))
    content = json.loads(found.json)
    jsonschema.Draft7Validator(SCHEMA).validate(content)
    assert len(content["nodes"]) == graph.statistics.num_nodes_kept
    assert len(content["links"]) == graph.statistics.num_edges_kept
    watched = [news async for news in rig.graphs.WatchGraph(service_pb2.WatchGraphRequest(name="graphs/g1"))]
    assert watched[-1].graph.json == found.json
    await rig.make("g2", prompt="second")
    listed = await rig.graphs.ListGraphs(service_pb2.ListGraphsRequest(page_size=1))
    assert [item.name for item in listed.graphs] == ["graphs/g2"]
    rest = await rig.graphs.ListGraphs(service_pb2.ListGraphsRequest(page_token=listed.next_page_token))
    assert [item.name for item in rest.graphs] == ["graphs/g1"]
    (seconds,) = rig.registry.collect()
    timed = {sample.labels["stage"]: sample.value for sample in seconds.samples if sample.name.endswith("_count")}
    assert timed == dict.fromkeys(("capture", "features", "sweep", "influence", "store"), 2)


async def test_watch_follows_a_graph_to_its_end(rig: Rig) -> None:
    """A stream opened right after the request ends with the finished graph."""
    await rig.graphs.CreateGraph(request())
    news = [item async for item in rig.graphs.WatchGraph(service_pb2.WatchGraphRequest(name="graphs/g1"))]
    assert news[-1].graph.state == messages_pb2.GRAPH_STATE_SUCCEEDED
    assert all(item.metadata.graph == "graphs/g1" for item in news)


async def test_json_has_unique_ids_and_its_links_join_them(rig: Rig) -> None:
    """Ids are unique although features of layer 0 and errors both begin with a layer; links join nodes that exist."""
    graph = await rig.make(node_threshold=1.0, edge_threshold=1.0)
    content = json.loads((await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name=graph.name))).json)
    ids = [node["node_id"] for node in content["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {end for link in content["links"] for end in (link["source"], link["target"])} <= set(ids)
    logits = [node for node in content["nodes"] if node["feature_type"] == "logit"]
    assert logits
    assert all("(p=" in node["clerp"] for node in logits)
    assert any("_error_mlp_" in name for name in ids)


async def test_prune_needs_no_recompute_and_changes_nothing(rig: Rig) -> None:
    """Other thresholds give a smaller graph from what is stored; the stored one stays."""
    graph = await rig.make()
    captures = rig.runner.captures
    before = (await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name=graph.name))).json
    prune = service_pb2.PruneGraphRequest(name=graph.name, node_threshold=0.4, edge_threshold=0.6)
    pruned = await rig.graphs.PruneGraph(prune)
    assert rig.runner.captures == captures
    assert pruned.statistics.num_nodes_kept < graph.statistics.num_nodes_kept
    assert pruned.statistics.num_edges_kept < graph.statistics.num_edges_kept
    assert (await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name=graph.name))).json == before
    same = await rig.graphs.PruneGraph(
        service_pb2.PruneGraphRequest(name=graph.name, node_threshold=0.8, edge_threshold=0.98)
    )
    assert json.loads(same.json) == json.loads(before)
    for field in ("node_threshold", "edge_threshold"):
        bad = {"node_threshold": 0.5, "edge_threshold": 0.5, field: float("nan")}
        error = await refused(rig.graphs.PruneGraph(service_pb2.PruneGraphRequest(name=graph.name, **bad)))
        assert isinstance(error, InvalidArgumentError)


async def test_intervention_agrees_with_the_graph_under_the_freeze(rig: Rig) -> None:
    """Direct edges predict exactly what the frozen model does; the result is kept with the graph."""
    graph = await rig.make(node_threshold=1.0, edge_threshold=1.0)
    content = json.loads((await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name=graph.name))).json)
    features = [node["node_id"] for node in content["nodes"] if node["feature_type"] == "cross layer transcoder"]
    change = [
        messages_pb2.FeatureIntervention(node_id=features[0], factor=0.0),
        messages_pb2.FeatureIntervention(node_id=features[-1], factor=3.0),
        messages_pb2.FeatureIntervention(node_id=features[len(features) // 2], value=0.25),
    ]
    result = await rig.graphs.Intervene(service_pb2.InterveneRequest(name=graph.name, interventions=change))
    moved = np.array([effect.predicted for effect in result.effects])
    assert np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(moved, [effect.measured_frozen for effect in result.effects], rtol=1e-4, atol=1e-6)
    assert any(abs(effect.measured - effect.measured_frozen) > 1e-6 for effect in result.effects)
    assert any(abs(effect.predicted_total - effect.predicted) > 1e-6 for effect in result.effects)
    kept = (await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name=graph.name))).interventions
    assert list(kept) == [result]
    wrong = service_pb2.InterveneRequest(
        name=graph.name, interventions=[messages_pb2.FeatureIntervention(node_id="E_3_0", factor=0.0)]
    )
    assert isinstance(await refused(rig.graphs.Intervene(wrong)), InvalidArgumentError)
    empty = service_pb2.InterveneRequest(name=graph.name)
    assert isinstance(await refused(rig.graphs.Intervene(empty)), InvalidArgumentError)


async def test_same_request_twice_makes_one_graph(rig: Rig) -> None:
    """A repeated request id gives the same operation; another request under the id is refused."""
    asked = request()
    asked.request_id = str(uuid.uuid4())
    first = await rig.graphs.CreateGraph(asked)
    second = await rig.graphs.CreateGraph(asked)
    assert first.name == second.name
    await rig.done(first)
    assert isinstance(await refused(rig.graphs.CreateGraph(request())), AlreadyExistsError)
    listed = await rig.graphs.ListGraphs(service_pb2.ListGraphsRequest())
    assert len(listed.graphs) == 1


async def test_deleted_graph_is_gone_and_its_id_free(rig: Rig) -> None:
    """Nothing of a deleted graph stays, and its id can be used again."""
    await rig.make()
    await rig.graphs.DeleteGraph(service_pb2.DeleteGraphRequest(name="graphs/g1"))
    assert isinstance(await refused(rig.graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g1"))), NotFoundError)
    assert [info.key for info in rig.store.list("graphs/")] == []
    await rig.make()


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"model": "models/absent"}, NotFoundError),
        ({"transcoder": "transcoders/absent"}, NotFoundError),
        ({"transcoder": "transcoders/other-revision"}, FailedPreconditionError),
        ({"prompt": ""}, InvalidArgumentError),
        ({"prompt": "x"}, InvalidArgumentError),
        ({"prompt": "x" * 21}, InvalidArgumentError),
        ({"node_threshold": 1.5}, InvalidArgumentError),
        ({"edge_threshold": -0.1}, InvalidArgumentError),
        ({"logit_probability": float("nan")}, InvalidArgumentError),
        ({"max_logits": 101}, InvalidArgumentError),
        ({"target_token_ids": [40]}, InvalidArgumentError),
        ({"target_token_ids": [-1]}, InvalidArgumentError),
        ({"target_token_ids": [3, 3]}, InvalidArgumentError),
        ({"batch_size": -1}, InvalidArgumentError),
        ({"max_features": -1}, InvalidArgumentError),
        ({"position": -1}, InvalidArgumentError),
        ({"position": 0}, InvalidArgumentError),
        ({"position": 7}, InvalidArgumentError),
        ({"position": 3, "targets": [targets_pb2.Target(text="x")]}, InvalidArgumentError),
        ({"targets": [targets_pb2.Target()]}, InvalidArgumentError),
        ({"targets": [targets_pb2.Target(token_id=40)]}, InvalidArgumentError),
        ({"targets": [targets_pb2.Target(token_id=i % 40) for i in range(101)]}, InvalidArgumentError),
        ({"model": "tiny"}, InvalidArgumentError),
    ],
)
async def test_bad_request_is_refused_and_leaves_nothing(rig: Rig, spec: dict[str, Any], kind: type[WeftError]) -> None:
    """Each bad request gets its code, with and without validate_only, and no graph is written."""
    for validate_only in (True, False):
        asked = request(**spec)
        asked.validate_only = validate_only
        assert type(await refused(rig.graphs.CreateGraph(asked))) is kind
    assert [info.key for info in rig.store.list("graphs/")] == []


async def test_validate_only_changes_nothing(rig: Rig) -> None:
    """A good request with validate_only writes no graph and starts no work."""
    asked = request()
    asked.validate_only = True
    await rig.graphs.CreateGraph(asked)
    assert [info.key for info in rig.store.list("graphs/")] == []
    assert isinstance(await refused(rig.graphs.CreateGraph(request("Bad_Id"))), InvalidArgumentError)


async def test_given_targets_are_the_logits(rig: Rig) -> None:
    """Asked token ids become the logit nodes, in their order."""
    await rig.make(target_token_ids=[7, 2])
    content = json.loads((await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g1"))).json)
    assert [node["feature"] for node in content["nodes"] if node["feature_type"] == "logit"] == [7, 2]


async def test_any_target_at_any_position_is_explained(rig: Rig) -> None:
    """Tokens, texts, differences, directions and features become nodes; a position ends the prompt."""
    asked = [
        targets_pb2.Target(text="s"),
        targets_pb2.Target(difference=targets_pb2.TokenDifference(text="s", minus_token_id=3), label="s or 3"),
        targets_pb2.Target(direction=targets_pb2.Direction(values=range(16))),
        targets_pb2.Target(feature=targets_pb2.FeatureOfLayer(layer=2, index=3)),
    ]
    graph = await rig.make("all", targets=asked)
    assert list(graph.spec.targets) == asked
    assert graph.statistics.conservation_error < 1e-3
    content = json.loads((await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/all"))).json)
    jsonschema.validate(content, SCHEMA)
    logits = [node for node in content["nodes"] if node["feature_type"] == "logit"]
    assert [node["feature"] for node in logits] == [ord("s") % 40, 41, 42, 43]
    assert [node["clerp"].split('"')[1] for node in logits[1:]] == ["s or 3", "direction 2", "feature 2_3"]
    feature = next(node["node_id"] for node in content["nodes"] if node["feature_type"].startswith("cross"))
    change = messages_pb2.FeatureIntervention(node_id=feature, factor=0.0)
    change_of = service_pb2.InterveneRequest(name="graphs/all", interventions=[change])
    refusal = await refused(rig.graphs.Intervene(change_of))
    assert isinstance(refusal, FailedPreconditionError)
    early = await rig.make("early", position=3)
    assert len(early.prompt_tokens) == 4
    assert early.spec.position == 3
    assert not (await rig.make("late")).spec.HasField("position")


async def test_budget_keeps_so_many_features(rig: Rig) -> None:
    """A graph with a budget has as many features, knows how many are active, and conserves."""
    whole = (await rig.make("whole")).statistics
    graph = (await rig.make("part", max_features=7)).statistics
    assert graph.num_features == 7
    assert graph.num_active_features == whole.num_active_features == whole.num_features > 7
    assert graph.num_nodes == whole.num_nodes - whole.num_features + 7
    assert graph.conservation_error < 1e-3


async def test_running_graph_is_shown_as_far_as_it_is_there(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While features are swept the logits' rows are shown, once each in a stream; in the end nothing of it is left."""
    reached, going = threading.Event(), threading.Event()
    whole_sweep = pipeline.sweep

    def pausing(*args: Any, rows: np.ndarray, **options: Any) -> None:
        if 0 in rows:
            reached.set()
            assert going.wait(60)
        whole_sweep(*args, rows=rows, **options)

    monkeypatch.setattr(pipeline, "sweep", pausing)
    operation = await rig.graphs.CreateGraph(request())
    await asyncio.to_thread(reached.wait, 60)
    seen = await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g1"))
    assert seen.state == messages_pb2.GRAPH_STATE_RUNNING
    content = json.loads(seen.json)
    jsonschema.validate(content, SCHEMA)
    kinds = {node["feature_type"] for node in content["nodes"]}
    assert {"logit", "embedding"} <= kinds
    assert "cross layer transcoder" not in kinds
    news = []
    async for response in rig.graphs.WatchGraph(service_pb2.WatchGraphRequest(name="graphs/g1")):
        news.append(response.graph)
        going.set()
    await rig.done(operation)
    assert news[0].json == seen.json
    assert news[-1].state == messages_pb2.GRAPH_STATE_SUCCEEDED
    assert sum(graph.json == seen.json for graph in news) == 1
    assert not any(info.key.endswith("partial.json") for info in rig.store.list("graphs/"))


async def test_cancelled_graph_says_so(rig: Rig) -> None:
    """A graph whose operation is cancelled before it is done is cancelled, and can then be deleted."""

    async def never(*args: Any) -> Any:
        await asyncio.Event().wait()

    rig.runner.capture = never  # type: ignore[method-assign]
    operation = await rig.graphs.CreateGraph(request())
    busy = await refused(rig.graphs.DeleteGraph(service_pb2.DeleteGraphRequest(name="graphs/g1")))
    assert isinstance(busy, FailedPreconditionError)
    await rig.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    await rig.done(operation)
    graph = await rig.graphs.GetGraph(service_pb2.GetGraphRequest(name="graphs/g1"))
    assert graph.state == messages_pb2.GRAPH_STATE_CANCELLED
    await rig.graphs.DeleteGraph(service_pb2.DeleteGraphRequest(name="graphs/g1"))


async def test_feature_tells_what_it_writes(rig: Rig) -> None:
    """A feature's norms and logits are those of its decoder rows, computed here by hand."""
    import safetensors.torch

    feature = await rig.features.GetFeature(
        features_pb2.GetFeatureRequest(name="transcoders/t/features/1-5", num_logits=4)
    )
    rows = safetensors.torch.load(rig.store.get("transcoders/t/W_dec_1.safetensors"))["W_dec_1"][5]
    np.testing.assert_allclose(feature.decoder_norms, rows.norm(dim=1), rtol=1e-5)
    weights = rig.runner.reference.w
    effect = weights["lm_head.weight"] @ (weights["model.norm.weight"] * rows.sum(0))
    effect = effect - effect.mean()
    best, worst = effect.topk(4), effect.topk(4, largest=False)
    assert [item.token_id for item in feature.top_logits] == best.indices.tolist()
    assert [item.token_id for item in feature.bottom_logits] == worst.indices.tolist()
    np.testing.assert_allclose([item.weight for item in feature.top_logits], best.values, rtol=1e-4)
    assert feature.top_logits[0].text == f"t{best.indices[0]}"
    assert feature.HasField("threshold")
    for name in ("transcoders/t/features/3-0", "transcoders/t/features/0-12", "transcoders/absent/features/0-0"):
        error = await refused(rig.features.GetFeature(features_pb2.GetFeatureRequest(name=name)))
        assert isinstance(error, NotFoundError)
    error = await refused(rig.features.GetFeature(features_pb2.GetFeatureRequest(name="transcoders/t/features/x")))
    assert isinstance(error, InvalidArgumentError)
