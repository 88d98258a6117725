# ruff: noqa: N802  the names of RPCs are given
"""
The attribution service with a dataset, a transcoder and a language model to ask, and catalogs of both beside it.

    async with jobs_house(folder, server.url) as jobs:      the services
        async with serving_console(jobs.settings(...)):     a console before them
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from attribution_house import AttributionHouse, attribution_house
from attribution_rig import make_transcoder
from index_rig import put_dataset
from prometheus_client import CollectorRegistry

from weft.cache.v1 import messages_pb2 as dataset_pb2
from weft.cache.v1 import service_pb2 as cache_pb2
from weft.cache.v1.service_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server
from weft.features.v1 import index_pb2
from weft.training.v1 import messages_pb2 as run_pb2
from weft.training.v1 import service_pb2 as training_pb2
from weft.training.v1.service_pb2_grpc import TrainingServiceServicer, add_TrainingServiceServicer_to_server
from weft_attribution.adapters.openai_interpreter import openai_interpreter
from weft_attribution.adapters.prometheus_interpretation import PrometheusInterpretation
from weft_attribution.core.feature_index.sequences import HarvestedSequences
from weft_attribution.interpretation_requests import Interpreting
from weft_common.errors import NotFoundError
from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings
from weft_console.settings import ConsoleSettings

CONSOLE_TOKEN = "a-token-for-tests"
EVIL = "<img src=x onerror=\"document.title='owned'\">"
_PEER_TOKEN = "integration"
_NUM_LAYERS = 3
_MARKED = re.compile(r"<<(.*?)>>")
_TOKENS = re.compile(r"t\d+")


class TokenBrain:
    """Names the token that is marked most often, and finds a named token again; tokens are `t0`, `t1` and so on."""

    def __init__(self) -> None:
        self.evil_for = ""

    def answer(self, system: str, user: str) -> str:
        lines = [line.partition(": ")[2] for line in user.splitlines() if line[:1].isdigit()]
        if '"label"' in system:
            marks = Counter(
                token for line in lines for mark in _MARKED.findall(line) for token in _TOKENS.findall(mark)
            )
            label = f"the token {marks.most_common(1)[0][0]}"
            self.evil_for = self.evil_for or label
            return json.dumps({"label": EVIL if label == self.evil_for else label})
        label = next(line for line in user.splitlines() if line.startswith("Label: "))
        found = _TOKENS.findall(label)
        parts = [_MARKED.findall(line) if "<<" in user else [line] for line in lines]
        return json.dumps({"answers": [int(bool(set(found) & set(_TOKENS.findall(" ".join(part))))) for part in parts]})


@dataclass
class Texts:
    """Sequences behind the dataset `d`; tests may hold them back, or have them fail."""

    token_ids: list[np.ndarray[Any, Any]]
    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    is_gone: bool = False

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        """The port SequenceSource."""
        await self.may_read.wait()
        if self.is_gone:
            raise NotFoundError("no harvest wrote datasets/d; harvest it instead of importing it")
        return HarvestedSequences("r1", self.token_ids, [np.array([0])] * len(self.token_ids), ())


class Transcoders(TrainingServiceServicer):
    """One transcoder, with an evaluation, and the run that it is of."""

    def __init__(self) -> None:
        self.transcoder = run_pb2.Transcoder(
            name="transcoders/t",
            model="models/tiny",
            model_revision="ab" * 32,
            dataset="datasets/d",
            run="runs/first",
            num_layers=_NUM_LAYERS,
            num_features=12,
            d_model=8,
            input_hook="mlp_in",
            output_hook="mlp_out",
            activation="threshold",
            size_bytes=123_456,
            prefix="transcoders/t/",
            evaluation=run_pb2.Evaluation(
                step=400,
                tokens=4096,
                explained_variance=0.72,
                explained_variance_by_layer=[0.8, 0.74, 0.62],
                l0_by_layer=[4.0, 5.0, 6.0],
                silent_share=0.125,
                silent_share_by_layer=[0.05, 0.125, 0.2],
                dense_share=0.02,
                dense_share_by_layer=[0.0, 0.02, 0.04],
                density_edges_log10=[-3, -2, -1, 0],
                density_counts_by_layer=[1, 8, 3, 2, 8, 2, 0, 9, 3],
                replacement=run_pb2.Replacement(
                    tokens=2032,
                    sequences=8,
                    cross_entropy=3.0,
                    all=_score(0.61),
                    by_layer=[_score(0.9), _score(0.8), _score(0.7)],
                ),
            ),
        )
        self.transcoder.create_time.GetCurrentTime()

    async def ListTranscoders(self, request: Any, context: Any) -> training_pb2.ListTranscodersResponse:
        imported = run_pb2.Transcoder(name="transcoders/other", model="models/tiny", num_layers=3, num_features=12)
        return training_pb2.ListTranscodersResponse(transcoders=[self.transcoder, imported])

    async def GetTranscoder(self, request: Any, context: Any) -> run_pb2.Transcoder:
        if request.name != self.transcoder.name:
            raise NotFoundError(f"there is no {request.name}")
        return self.transcoder

    async def GetRun(self, request: Any, context: Any) -> run_pb2.Run:
        if request.name != "runs/first":
            raise NotFoundError(f"there is no {request.name}")
        spec = run_pb2.TrainingSpec(dataset="datasets/d", num_features=12, num_steps=400, learning_rate=2e-3)
        return run_pb2.Run(name="runs/first", spec=spec, state=run_pb2.RUN_STATE_SUCCEEDED)


class Datasets(CacheServiceServicer):
    """Two datasets, of which only one fits."""

    async def ListDatasets(self, request: Any, context: Any) -> cache_pb2.ListDatasetsResponse:
        found = []
        for name, hook in (("d", "mlp_in"), ("unfit", "resid_mid")):
            spec = dataset_pb2.DatasetSpec(model="models/tiny", num_layers=_NUM_LAYERS, input_hook=hook)
            state = dataset_pb2.DATASET_STATE_SEALED
            found.append(dataset_pb2.Dataset(name=f"datasets/{name}", state=state, spec=spec, num_train_tokens=780))
        return cache_pb2.ListDatasetsResponse(datasets=found)


@dataclass
class JobsHouse:
    """
    The services.

    Args:
        house: The attribution service.
        texts: What it indexes.
        settings: Of a console before them.
    """

    house: AttributionHouse
    texts: Texts
    settings: ConsoleSettings

    async def index(self, index_id: str = "i1") -> index_pb2.FeatureIndex:
        """Make an index that has enough examples of most features."""
        settings = index_pb2.FeatureIndexSettings(
            window_tokens=6, num_top=4, num_sampled=48, num_quantiles=4, pool_windows=256
        )
        operation = await self.house.client.features.index("t", index_id, dataset="d", settings=settings)
        found = await self.house.client.operations.wait(operation)
        assert isinstance(found, index_pb2.FeatureIndex)
        return found


@asynccontextmanager
async def jobs_house(folder: Path, url: str, *, num_sequences: int = 60) -> AsyncIterator[JobsHouse]:
    """Serve; without a `url` no language model is set up."""
    rng = np.random.default_rng(0)
    texts = Texts([rng.integers(0, 40, 14) for _ in range(num_sequences)])
    texts.may_read.set()
    async with openai_interpreter(url or "http://127.0.0.1:9/v1", "key", timeout_s=60.0) as interpreter:
        interpreting = Interpreting(
            interpreter,
            endpoint=url or "",
            model="m",
            embedding_model="",
            structured=False,
            concurrency=3,
            max_attempts=3,
            observe=PrometheusInterpretation(CollectorRegistry()),
        )
        peer = ServiceSettings(token=_PEER_TOKEN)
        async with (
            attribution_house(folder, sequences=texts, interpreting=interpreting if url else None) as house,
            serving("trainer", peer, _served(Transcoders(), "weft.training.v1.TrainingService")) as trainer,
            serving("cache", peer, _served(Datasets(), "weft.cache.v1.CacheService")) as cache,
        ):
            make_transcoder(house.store, "other", house.runner.reference, seed=2)
            put_dataset(house.store, _shards(house, texts), revision="r1", shard_sequences=10)
            endpoint = json.loads((folder / "endpoints.json").read_text())["services"]["attribution"]
            settings = ConsoleSettings(
                token=CONSOLE_TOKEN,
                drain_s=2,
                attribution_target=endpoint["target"],
                attribution_token=_PEER_TOKEN,
                trainer_target=trainer.target,
                trainer_token=_PEER_TOKEN,
                cache_target=cache.target,
                cache_token=_PEER_TOKEN,
            )
            yield JobsHouse(house, texts, settings)


def _served(servicer: Any, name: str) -> list[Registration]:
    is_training = name.startswith("weft.training")
    add = add_TrainingServiceServicer_to_server if is_training else add_CacheServiceServicer_to_server
    return [Registration(name, lambda server: add(servicer, server))]


def _shards(house: AttributionHouse, texts: Texts) -> Sequence[np.ndarray[Any, Any]]:
    inputs = []
    for ids in texts.token_ids:
        streams = house.runner.reference.streams(ids.tolist())
        inputs.append(np.stack([streams[f"layers.{layer}.mlp_in"].numpy()[1:] for layer in range(_NUM_LAYERS)]))
    return [
        np.concatenate(inputs[at : at + 10], axis=1).astype(np.float32) for at in range(0, len(texts.token_ids), 10)
    ]


def _score(kept: float) -> run_pb2.ReplacementScore:
    return run_pb2.ReplacementScore(
        cross_entropy=5.5 - 2.5 * kept,
        kl_divergence=2.5 * (1 - kept),
        top1_agreement=kept,
        ablated_cross_entropy=11.0,
        recovered=kept + 0.05,
    )
