# ruff: noqa: N802  the names of RPCs are given
"""A console in this process over small servicers that keep everything in memory, and a browser that looks at it."""

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chromium_browser import chromium
from fake_labels import FakeGraphLabels, FakeLabels
from fake_readings import FakeReadings
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from playwright.async_api import expect
from watched_page import TOKEN, built_page, watched

from weft.attribution.v1 import messages_pb2 as graph_pb2
from weft.attribution.v1 import service_pb2 as attribution_pb2
from weft.attribution.v1.service_pb2_grpc import AttributionServiceServicer, add_AttributionServiceServicer_to_server
from weft.cache.v1 import messages_pb2 as dataset_pb2
from weft.cache.v1 import service_pb2 as cache_pb2
from weft.cache.v1.service_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server
from weft.common.v1 import operation_pb2
from weft.features.v1 import service_pb2 as features_pb2
from weft.features.v1.labels_pb2_grpc import add_LabelServiceServicer_to_server
from weft.features.v1.service_pb2_grpc import FeatureServiceServicer, add_FeatureServiceServicer_to_server
from weft.training.v1 import messages_pb2 as run_pb2
from weft.training.v1 import service_pb2 as training_pb2
from weft.training.v1.service_pb2_grpc import TrainingServiceServicer, add_TrainingServiceServicer_to_server
from weft_common.errors import NotFoundError
from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings
from weft_console.serve import Console, serving_console
from weft_console.settings import ConsoleSettings

__all__ = ["built_page", "chromium", "watched"]

PEER_TOKEN = "another-token"
# Services, browser and tests share the processors; nothing here says how long a page may take.
expect.set_options(timeout=20_000)
TOKENS = ["<|im_start|>", "The", " capital", " of", " France", " is"]
NUM_LAYERS = 30


def make_graph_json(num_features: int = 260, num_edges: int = 2600, tokens: list[str] | None = None) -> dict[str, Any]:
    """A graph file as the attribution service writes it, from a fixed seed."""
    rng = random.Random(7)
    tokens = tokens or TOKENS
    nodes: list[dict[str, Any]] = []

    def add(node_id: str, layer: int | str, position: int, kind: str, **more: Any) -> None:
        base = {"jsNodeId": f"{node_id}-0", "feature": None, "clerp": "", "influence": None, "activation": None}
        base |= {"token_prob": 0.0, "is_target_logit": False}
        nodes.append(
            {**base, "node_id": node_id, "layer": str(layer), "ctx_idx": position, "feature_type": kind, **more}
        )

    for position, token in enumerate(tokens):
        add(f"E_{100 + position}_{position}", "E", position, "embedding", clerp=f'Emb: "{token}"')
    taken: set[str] = set()
    while len(taken) < num_features:
        layer = min(NUM_LAYERS - 1, int(rng.betavariate(1.6, 1.3) * NUM_LAYERS))
        index, position = rng.randrange(1024), rng.choices(range(1, len(tokens)), range(1, len(tokens)))[0]
        node_id = f"{layer}_{index}_{position}"
        if node_id not in taken:
            taken.add(node_id)
            pair = (layer + index) * (layer + index + 1) // 2 + index
            activation = round(rng.lognormvariate(0.5, 0.8), 4)
            add(node_id, layer, position, "cross layer transcoder", feature=pair, activation=activation)
    for layer in range(0, NUM_LAYERS, 2):
        position = rng.randrange(1, len(tokens))
        add(f"{layer}_error_mlp_{position}", layer, position, "mlp reconstruction error")
    for rank, (token, share) in enumerate([(" Paris", 0.46), (" the", 0.21), (" a", 0.09), (" located", 0.05)]):
        clerp = f'Output "{token}" (p={share:.3f})'
        add(
            f"{NUM_LAYERS + 1}_{500 + rank}_{len(tokens) - 1}",
            NUM_LAYERS + 1,
            len(tokens) - 1,
            "logit",
            clerp=clerp,
            token_prob=share,
            is_target_logit=rank == 0,
        )

    def depth(node: dict[str, Any]) -> int:
        return -1 if node["layer"] == "E" else int(node["layer"])

    ranked = [node for node in nodes if node["feature_type"] in ("cross layer transcoder", "mlp reconstruction error")]
    rng.shuffle(ranked)
    mass = [1 / (rank + 3) for rank in range(len(ranked))]
    total, so_far = sum(mass), 0.0
    for node, share in zip(ranked, mass, strict=True):
        so_far += share
        node["influence"] = round(0.8 * so_far / total, 6)
    links: dict[tuple[str, str], float] = {}
    sources = [node for node in nodes if node["feature_type"] != "logit"]
    targets = [node for node in nodes if node["feature_type"] in ("cross layer transcoder", "logit")]
    while len(links) < num_edges:
        source = rng.choice(sources)
        target = rng.choice(targets[-4:] if rng.random() < 0.15 else targets)
        if depth(source) < depth(target) and source["ctx_idx"] <= target["ctx_idx"]:
            weight = rng.lognormvariate(-1.5, 1.2) * (-1 if rng.random() < 0.3 else 1)
            links[source["node_id"], target["node_id"]] = round(weight, 6)
    return {
        "metadata": {
            "slug": "france",
            "scan": "smollm2-135m-instruct",
            "prompt": "The capital of France is",
            "prompt_tokens": tokens,
            "transcoder_list": ["demo"],
            "schema_version": 1,
            "node_threshold": 0.8,
            "generation_settings": {"max_n_logits": 10, "desired_logit_prob": 0.95},
            "pruning_settings": {"node_threshold": 0.8, "edge_threshold": 0.98},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [{"source": s, "target": t, "weight": w} for (s, t), w in links.items()],
    }


def now(offset_s: float = 0.0) -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    stamp.seconds += int(offset_s)
    return stamp


@dataclass
class World:
    """What the servicers hold, for tests to look at and change."""

    json: bytes
    graphs: dict[str, graph_pb2.Graph] = field(default_factory=dict)
    created: list[attribution_pb2.CreateGraphRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    interventions: list[attribution_pb2.InterveneRequest] = field(default_factory=list)
    scored: list[list[str]] = field(default_factory=list)
    summarized: list[tuple[int, int]] = field(default_factory=list)
    split: list[tuple[str, str]] = field(default_factory=list)
    attention: list[tuple[int, int, int, int]] = field(default_factory=list)
    steered: list[Any] = field(default_factory=list)
    partial_json: bytes = b""
    finish_graphs: asyncio.Event = field(default_factory=asyncio.Event)
    steps: asyncio.Queue[int] = field(default_factory=asyncio.Queue)

    def add_graph(self, graph_id: str, spec: graph_pb2.GraphSpec, state: int) -> None:
        statistics = graph_pb2.GraphStatistics(
            num_features=2113,
            num_nodes=2320,
            num_edges=1_204_113,
            num_nodes_kept=285,
            num_edges_kept=2600,
            replacement_score=0.412,
            completeness_score=0.713,
            conservation_error=3.1e-6,
            seconds=11.4,
            stage_seconds=[graph_pb2.StageSeconds(stage="sweep", seconds=8.2)],
        )
        self.graphs[f"graphs/{graph_id}"] = graph_pb2.Graph(
            name=f"graphs/{graph_id}",
            spec=spec,
            state=state,
            prompt_tokens=TOKENS,
            statistics=statistics,
            create_time=now(-300),
            operation=f"operations/attribution-{graph_id}",
        )


class Attribution(
    FakeReadings,
    FakeGraphLabels,
    AttributionServiceServicer,
    FeatureServiceServicer,
    operations_pb2_grpc.OperationsServicer,
):
    def __init__(self, world: World) -> None:
        self.world = world

    def _graph(self, name: str) -> graph_pb2.Graph:
        if name not in self.world.graphs:
            raise NotFoundError(f"there is no {name}; `weft graphs list` shows those that are")
        return self.world.graphs[name]

    async def ListGraphs(self, request: Any, context: Any) -> attribution_pb2.ListGraphsResponse:
        return attribution_pb2.ListGraphsResponse(graphs=list(self.world.graphs.values()))

    async def GetGraph(self, request: Any, context: Any) -> graph_pb2.Graph:
        graph = graph_pb2.Graph()
        graph.CopyFrom(self._graph(request.name))
        if graph.state == graph_pb2.GRAPH_STATE_SUCCEEDED:
            graph.json = self.world.json
        elif graph.state == graph_pb2.GRAPH_STATE_RUNNING:
            graph.json = self.world.partial_json
        return graph

    async def CreateGraph(self, request: Any, context: Any) -> operations_pb2.Operation:
        self.world.created.append(request)
        self.world.add_graph(request.graph_id, request.spec, graph_pb2.GRAPH_STATE_RUNNING)
        return operations_pb2.Operation(name=f"operations/attribution-{request.graph_id}")

    async def WatchGraph(self, request: Any, context: Any) -> AsyncIterator[attribution_pb2.WatchGraphResponse]:
        graph = self._graph(request.name)
        progress = operation_pb2.Progress(stage="sweeping", completed=128, total=2117, unit="rows")
        metadata = graph_pb2.GraphMetadata(graph=request.name, progress=progress)
        so_far = graph_pb2.Graph()
        so_far.CopyFrom(graph)
        so_far.json = self.world.partial_json
        yield attribution_pb2.WatchGraphResponse(metadata=metadata, graph=so_far)
        await self.world.finish_graphs.wait()
        cancelled = graph.operation in self.world.cancelled
        graph.state = graph_pb2.GRAPH_STATE_CANCELLED if cancelled else graph_pb2.GRAPH_STATE_SUCCEEDED
        yield attribution_pb2.WatchGraphResponse(graph=graph)

    async def CancelOperation(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.world.cancelled.append(request.name)
        self.world.finish_graphs.set()
        return empty_pb2.Empty()

    async def DeleteGraph(self, request: Any, context: Any) -> attribution_pb2.DeleteGraphResponse:
        self._graph(request.name)
        del self.world.graphs[request.name]
        return attribution_pb2.DeleteGraphResponse()

    async def Intervene(self, request: Any, context: Any) -> graph_pb2.InterventionResult:
        self.world.interventions.append(request)
        effects = [
            graph_pb2.LogitEffect(
                token_id=500 + rank,
                text=text,
                predicted=-0.42 + 0.1 * rank,
                predicted_total=-0.81 + 0.1 * rank,
                measured_frozen=-0.4201 + 0.1 * rank,
                measured=-0.655,
                probability_before=share,
                probability_after=share / 2,
            )
            for rank, (text, share) in enumerate([(" Paris", 0.46), (" the", 0.21), (" a", 0.09), (" located", 0.05)])
        ]
        return graph_pb2.InterventionResult(interventions=request.interventions, effects=effects, create_time=now())

    async def GetFeature(self, request: Any, context: Any) -> features_pb2.Feature:
        layer, index = map(int, request.name.rsplit("/", 1)[1].split("-"))
        rng = random.Random(index)
        words = [" Paris", " French", " Lyon", " capital", " Europe", " city", " wine", " Seine", " nation", " tower"]
        top = [features_pb2.FeatureLogit(token_id=i, text=w, weight=1.4 - 0.1 * i) for i, w in enumerate(words)]
        bottom = [
            features_pb2.FeatureLogit(token_id=99 - i, text=w, weight=-0.9 + 0.06 * i) for i, w in enumerate(words)
        ]
        norms = [rng.uniform(0.2, 1) * math.exp(-i / 8) for i in range(NUM_LAYERS - layer)]
        return features_pb2.Feature(
            name=request.name,
            layer=layer,
            index=index,
            decoder_norms=norms,
            encoder_bias=-0.31,
            threshold=0.12,
            top_logits=top,
            bottom_logits=bottom,
        )


class Trainer(TrainingServiceServicer):
    """One run whose steps tests let happen."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.run = run_pb2.Run(
            name="runs/demo",
            state=run_pb2.RUN_STATE_RUNNING,
            attempt=1,
            create_time=now(-90),
            peak_memory_bytes=3 << 30,
            spec=run_pb2.TrainingSpec(
                dataset="datasets/demo",
                num_features=1024,
                activation=run_pb2.ACTIVATION_TOP_K,
                top_k=16,
                num_steps=400,
                step_tokens=512,
                feature_ranks=2,
                data_ranks=1,
                learning_rate=2e-3,
            ),
            transitions=[
                run_pb2.StateTransition(state=run_pb2.RUN_STATE_PENDING, time=now(-90), reason="asked for"),
                run_pb2.StateTransition(state=run_pb2.RUN_STATE_RUNNING, time=now(-80), reason="2 ranks report"),
            ],
        )

    @staticmethod
    def metrics(step: int) -> run_pb2.Metrics:
        noise = random.Random(step).gauss(0, 0.012)
        decay = math.exp(-step / 90)
        return run_pb2.Metrics(
            step=step,
            tokens=512 * step,
            loss=0.42 + 0.6 * decay + noise,
            reconstruction_loss=0.4 + 0.58 * decay + noise,
            l0=16,
            explained_variance=0.55 - 0.5 * decay + noise,
            dead_share=0.2 * (1 - decay),
            gradient_norm=0.8 + noise,
            learning_rate=2e-3,
            tokens_per_s=2400 + 4000 * noise,
            sent_bytes_per_token=61_541.3,
            entry_bytes_per_token=9_728,
        )

    @staticmethod
    def evaluation(step: int) -> run_pb2.Evaluation:
        rng = random.Random(step)
        by_layer = [0.35 + 0.3 * math.sin(layer / 6) ** 2 + rng.uniform(0, 0.04) for layer in range(NUM_LAYERS)]
        return run_pb2.Evaluation(
            step=step,
            tokens=4096,
            explained_variance=sum(by_layer) / NUM_LAYERS,
            explained_variance_by_layer=by_layer,
            l0_by_layer=[12 + layer % 7 for layer in range(NUM_LAYERS)],
            silent_share=0.08,
            silent_share_by_layer=[0.02 + 0.12 * rng.random() for _ in range(NUM_LAYERS)],
            dense_share=0.01,
            dense_share_by_layer=[0.02 * rng.random() for _ in range(NUM_LAYERS)],
            density_edges_log10=[-6 + quarter / 4 for quarter in range(25)],
            density_counts_by_layer=[
                round(300 * math.exp(-(((place - 14) / 3) ** 2))) for _ in range(NUM_LAYERS) for place in range(24)
            ],
        )

    @staticmethod
    def replacement() -> run_pb2.Replacement:
        def score(kept: float) -> run_pb2.ReplacementScore:
            return run_pb2.ReplacementScore(
                cross_entropy=5.5 - 2.5 * kept,
                kl_divergence=2.5 * (1 - kept),
                top1_agreement=kept,
                ablated_cross_entropy=11.0,
                recovered=kept + 0.05,
            )

        layers = [score(0.8 + 0.15 * math.cos(layer / 5)) for layer in range(NUM_LAYERS)]
        return run_pb2.Replacement(tokens=2032, sequences=8, cross_entropy=3.0, all=score(0.412), by_layer=layers)

    async def ListRuns(self, request: Any, context: Any) -> training_pb2.ListRunsResponse:
        return training_pb2.ListRunsResponse(runs=[self.run])

    async def GetRun(self, request: Any, context: Any) -> run_pb2.Run:
        if request.name != self.run.name:
            raise NotFoundError(f"there is no {request.name}")
        return self.run

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[training_pb2.WatchRunResponse]:
        yield training_pb2.WatchRunResponse(run=self.run)
        for step in range(request.after_step + 1, 121):
            yield training_pb2.WatchRunResponse(metrics=self.metrics(step))
        for step in (25, 50, 75, 100):
            yield training_pb2.WatchRunResponse(evaluation=self.evaluation(step))
        while True:
            step = await self.world.steps.get()
            yield training_pb2.WatchRunResponse(metrics=self.metrics(step))

    async def ListCheckpoints(self, request: Any, context: Any) -> training_pb2.ListCheckpointsResponse:
        evaluation = self.evaluation(100)
        evaluation.replacement.CopyFrom(self.replacement())
        found = [
            run_pb2.Checkpoint(name=f"{request.run}/checkpoints/110", step=110),
            run_pb2.Checkpoint(name=f"{request.run}/checkpoints/100", step=100, evaluation=evaluation),
        ]
        return training_pb2.ListCheckpointsResponse(checkpoints=found)

    async def PauseRun(self, request: Any, context: Any) -> run_pb2.Run:
        self.run.state = run_pb2.RUN_STATE_PAUSED
        return self.run

    async def ListTranscoders(self, request: Any, context: Any) -> training_pb2.ListTranscodersResponse:
        transcoder = run_pb2.Transcoder(
            name="transcoders/demo", model="models/smollm2-135m-instruct", num_layers=NUM_LAYERS, num_features=1024
        )
        return training_pb2.ListTranscodersResponse(transcoders=[transcoder])


class Cache(CacheServiceServicer):
    def __init__(self) -> None:
        statistics = dataset_pb2.StreamStatistics(num_tokens=10, mean=[0.5] * 576)
        shard = dataset_pb2.Shard(
            index=0, key="datasets/demo/shards/0.weft", statistics=[dataset_pb2.LayerStatistics(input=statistics)]
        )
        self.dataset = dataset_pb2.Dataset(
            name="datasets/demo",
            state=dataset_pb2.DATASET_STATE_SEALED,
            num_train_tokens=36_000,
            num_held_out_tokens=4_096,
            size_bytes=912_000_000,
            shards=[shard] * 12,
            create_time=now(-3600),
            seal_time=now(-3500),
            spec=dataset_pb2.DatasetSpec(
                model="models/smollm2-135m-instruct",
                num_layers=NUM_LAYERS,
                d_model=576,
                input_hook="mlp_in",
                output_hook="mlp_out",
                codec="uniform",
                target_fvu=1e-3,
                corpus="corpora/pydoc",
            ),
        )

    async def ListDatasets(self, request: Any, context: Any) -> cache_pb2.ListDatasetsResponse:
        return cache_pb2.ListDatasetsResponse(datasets=[self.dataset])

    async def GetDataset(self, request: Any, context: Any) -> dataset_pb2.Dataset:
        if request.name != self.dataset.name:
            raise NotFoundError(f"there is no {request.name}")
        return self.dataset

    async def GetStats(self, request: Any, context: Any) -> cache_pb2.GetStatsResponse:
        rng = random.Random(3)
        stats = [
            cache_pb2.CompressionStats(
                layer=layer,
                stream=stream,
                bits_per_value=4.6 + rng.uniform(-0.5, 0.5),
                entropy_bits=4.5 + rng.uniform(-0.5, 0.5),
                fvu=1e-3 * rng.uniform(0.985, 1.01),
            )
            for layer in range(NUM_LAYERS)
            for stream in ("input", "output")
        ]
        return cache_pb2.GetStatsResponse(stats=stats, bits_per_value=4.612, bytes_per_token=19_922, fvu_max=0.00101)


def registrations(*pairs: tuple[Any, str, Any]) -> list[Registration]:
    return [Registration(name, lambda server, add=add, one=one: add(one, server)) for one, name, add in pairs]


@pytest.fixture
def graph_json() -> dict[str, Any]:
    return make_graph_json()


@pytest.fixture
def large_graph_json() -> dict[str, Any]:
    """A graph of 5,000 nodes and 100,000 edges over 64 positions."""
    tokens = ["<|im_start|>", *(f" word{i}" for i in range(63))]
    return make_graph_json(num_features=4_917, num_edges=100_000, tokens=tokens)


@pytest.fixture
async def world(graph_json: dict[str, Any]) -> World:
    world = World(json=json.dumps(graph_json).encode())
    spec = graph_pb2.GraphSpec(
        model="models/smollm2-135m-instruct", transcoder="transcoders/demo", prompt="The capital of France is"
    )
    world.add_graph("france", spec, graph_pb2.GRAPH_STATE_SUCCEEDED)
    return world


@pytest.fixture
async def settings(world: World, tmp_path: Path) -> AsyncIterator[ConsoleSettings]:
    """Settings of a console whose peers run."""

    class PeerSettings(ServiceSettings):
        pass

    peer = PeerSettings(token=PEER_TOKEN, max_message_bytes=64 << 20)
    attribution = Attribution(world)
    pairs = registrations(
        (attribution, "weft.attribution.v1.AttributionService", add_AttributionServiceServicer_to_server),
        (attribution, "weft.features.v1.FeatureService", add_FeatureServiceServicer_to_server),
        (FakeLabels(), "weft.features.v1.LabelService", add_LabelServiceServicer_to_server),
        (attribution, "google.longrunning.Operations", operations_pb2_grpc.add_OperationsServicer_to_server),
    )
    trainer = registrations((Trainer(world), "weft.training.v1.TrainingService", add_TrainingServiceServicer_to_server))
    cache = registrations((Cache(), "weft.cache.v1.CacheService", add_CacheServiceServicer_to_server))
    async with (
        serving("attribution", peer, pairs) as one,
        serving("trainer", peer, trainer) as two,
        serving("cache", peer, cache) as three,
    ):
        static = tmp_path / "static"
        (static / "assets").mkdir(parents=True)
        (static / "index.html").write_text("<!doctype html><title>weft</title>")
        yield ConsoleSettings(
            token=TOKEN,
            static_dir=static,
            drain_s=2,
            attribution_target=one.target,
            attribution_token=PEER_TOKEN,
            trainer_target=two.target,
            trainer_token=PEER_TOKEN,
            cache_target=three.target,
            cache_token=PEER_TOKEN,
        )


@pytest.fixture
async def console(settings: ConsoleSettings) -> AsyncIterator[Console]:
    """A console that serves a page of one line."""
    async with serving_console(settings) as console:
        yield console


@pytest.fixture
async def page_console(settings: ConsoleSettings, built_page: None) -> AsyncIterator[Console]:
    """A console that serves the built page."""
    built = type(settings).model_fields["static_dir"].default
    async with serving_console(settings.model_copy(update={"static_dir": built})) as console:
        yield console
