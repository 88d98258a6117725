"""
A transcoder made by hand for a real model: five features that fire on a digit, a bracket or one of three words, and
services around it.

    planted_house(...)    harvest, index, labels and scores of it, through the services

An encoder row is the ridge regression of "is this token one of mine" on what the MLP of the layer reads, over text of
its own; its threshold is the middle. So what a feature means is known, and how it is to be labelled.
"""

import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from interpreter_server import InterpreterServer, interpreter_server
from prometheus_client import CollectorRegistry
from rule_interpreter import LABELS, NEUTRAL, PLACES, RULES, RuleBrain

from weft.features.v1 import index_pb2, interpretation_pb2, labels_pb2
from weft_activations.adapters.grpc_catalog import GrpcCatalog
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations as activations_registrations
from weft_attribution.adapters.grpc_activations import GrpcModelRunner
from weft_attribution.adapters.grpc_sequences import GrpcSequences
from weft_attribution.adapters.openai_interpreter import openai_interpreter
from weft_attribution.adapters.prometheus_interpretation import PrometheusInterpretation
from weft_attribution.interpretation_requests import Interpreting
from weft_attribution.wiring import registrations as attribution_registrations
from weft_cache.settings import CacheSettings
from weft_cache.wiring import registration as cache_registration
from weft_client import AsyncClient, Endpoint
from weft_client.specs import harvest_spec
from weft_common.client import aio_channel
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store.opening import open_store
from weft_store.port import ObjectStore

FEATURES = [f"transcoders/planted/features/{layer}-{index}" for layer, index in PLACES]
_A_LAYER = 4
_RIDGE = 1e-2
_MORE = ("old", "long", "small", "green", "house", "road", "day", "man", "see", "go", "say", "far")
SETTINGS = index_pb2.FeatureIndexSettings(
    window_tokens=16, num_top=8, num_sampled=100, num_quantiles=5, pool_windows=256
)


def documents(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Documents of about 200 tokens; in each sentence stands every planted kind or not, whatever the others do."""
    rng, found = random.Random(f"planted {seed}"), []
    for number in range(count):
        sentences = []
        for _ in range(14):
            words = [rng.choice((*NEUTRAL, *_MORE)) for _ in range(rng.randint(8, 12))]
            for kind in range(len(PLACES)):
                if rng.random() < 0.3:
                    # Never last: a full stop would stick to it.
                    words.insert(rng.randrange(len(words)), _planted(kind, rng))
            sentences.append(" ".join(words))
        found.append((f"{number:03d}.txt", (". ".join(sentences) + ".").encode()))
    return found


def _planted(kind: int, rng: random.Random) -> str:
    if kind == 0:
        return str(rng.randint(1, 99))
    return f"({rng.choice(_MORE)})" if kind == 1 else LABELS[kind].removeprefix("the word ")


async def plant(store: ObjectStore, runner: GrpcModelRunner, model: str, *, num_documents: int) -> None:
    """Write the transcoder `planted`, of which every other feature is dead."""
    info = await runner.model(model)
    layers = sorted({layer for layer, _ in PLACES})
    streams: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    texts: list[str] = []
    for _, text in documents(num_documents, seed=1):
        tokens = await runner.tokenize(model, text.decode())
        capture = await runner.capture(model, [token.id for token in tokens], [f"layers.{la}.mlp_in" for la in layers])
        # The first token's stream is like no other's, and no dataset has it.
        texts += [token.text for token in tokens[1:]]
        for layer in layers:
            streams[layer].append(np.asarray(capture.tensors[f"layers.{layer}.mlp_in"][1:], np.float64))
    rng = np.random.default_rng(0)
    for layer in range(info.num_layers):
        weight_FD = np.zeros((_A_LAYER, info.d_model), np.float32)
        bias_F = np.full(_A_LAYER, -1.0, np.float32)
        for label, (where, index) in zip(LABELS, PLACES, strict=True):
            if where == layer:
                is_mine = np.array([RULES[label](text) for text in texts])
                weight_FD[index], bias_F[index] = _row(np.concatenate(streams[layer]), is_mine)
        encoder = {
            f"W_enc_{layer}": weight_FD,
            f"b_enc_{layer}": bias_F,
            f"b_dec_{layer}": np.zeros(info.d_model, "f4"),
        }
        decoder_FSD = rng.normal(size=(_A_LAYER, info.num_layers - layer, info.d_model)).astype(np.float32)
        store.put(f"transcoders/planted/W_enc_{layer}.safetensors", safetensors.numpy.save(encoder))
        store.put(
            f"transcoders/planted/W_dec_{layer}.safetensors", safetensors.numpy.save({f"W_dec_{layer}": decoder_FSD})
        )
    manifest = {"model": model, "model_revision": info.revision, "input_hook": "mlp_in", "output_hook": "mlp_out"}
    store.put("transcoders/planted/manifest.json", json.dumps(manifest).encode())


def _row(stream_TD: np.ndarray, is_mine_T: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias of an encoder row that is above zero where the regression is above its middle."""
    mean_D, share = stream_TD.mean(axis=0), is_mine_T.mean()
    centred_TD = stream_TD - mean_D
    scale = _RIDGE * (centred_TD**2).sum() / centred_TD.shape[1]
    gram_DD = centred_TD.T @ centred_TD + scale * np.eye(centred_TD.shape[1])
    weight_D = np.linalg.solve(gram_DD, centred_TD.T @ (is_mine_T - share))
    return weight_D.astype(np.float32), float(share - mean_D @ weight_D - 0.5)


@dataclass(frozen=True)
class Planted:
    """
    The planted transcoder behind all services.

    Args:
        client: Of them.
        endpoint: What answers by rule, and was asked.
        store: The bucket.
    """

    client: AsyncClient
    endpoint: InterpreterServer
    store: ObjectStore

    async def interpret(
        self, kinds: Sequence[labels_pb2.ScoreKind.ValueType]
    ) -> tuple[interpretation_pb2.ExplainFeaturesResponse, interpretation_pb2.ScoreFeaturesResponse]:
        """Have every planted feature labelled, then every label scored beside shuffled ones."""
        scope = interpretation_pb2.InterpretationScope(features=FEATURES, max_calls=10_000)
        wait = self.client.operations.wait
        explained = await wait(await self.client.labels.explain("planted", scope=scope))
        scored = await wait(await self.client.labels.score("planted", scope=scope, kinds=kinds, control=True))
        assert isinstance(explained, interpretation_pb2.ExplainFeaturesResponse)
        assert isinstance(scored, interpretation_pb2.ScoreFeaturesResponse)
        return explained, scored

    async def fires_right(self) -> dict[str, tuple[int, int, int]]:
        """By label: tokens of all examples where the feature fires and should, fires alone, should alone."""
        found = {}
        for label, (layer, index) in zip(LABELS, PLACES, strict=True):
            feature = await self.client.features.get(
                "planted", layer=layer, index=index, fields=["examples", "quiet_examples"]
            )
            pairs = [
                (activation > 0, RULES[label](text))
                for example in (*feature.examples, *feature.quiet_examples)
                for text, activation in zip(example.tokens, example.activations, strict=True)
            ]
            found[label] = (
                sum(fires and should for fires, should in pairs),
                sum(fires and not should for fires, should in pairs),
                sum(should and not fires for fires, should in pairs),
            )
        return found


@asynccontextmanager
async def planted_house(
    folder: Path, models: Path, model: str, *, num_documents: int, num_tokens: int
) -> AsyncIterator[Planted]:
    """
    Harvest, plant, index, and serve.

    Args:
        folder: Holds the bucket.
        models: Folder of model folders.
        model: The model.
        num_documents: That the encoder rows are made from.
        num_tokens: That the features are indexed over.
    """
    url = f"file://{folder}/bucket"
    store = open_store(url)
    cache = CacheSettings(insecure_no_auth=True, bucket_url=url, drain_s=0)
    activations = ActivationsSettings(
        insecure_no_auth=True, models_dir=models, cache_target="127.0.0.1:1", bucket_url=url, dtype="float32"
    )
    backend = TransformersBackend(models, dtype="float32", max_prompt_tokens=512, device="cpu", threads=0)
    settings = ServiceSettings(insecure_no_auth=True)
    with interpreter_server(RuleBrain().answer) as endpoint:
        async with (
            serving("cache", cache, [cache_registration(store, registry=CollectorRegistry())]) as catalog,
            aio_channel(catalog.target) as to_cache,
            activations_registrations(activations, backend, store, GrpcCatalog(to_cache)) as served,
            serving("activations", activations, served) as server,
            aio_channel(server.target) as channel,
            openai_interpreter(endpoint.url, "", timeout_s=30.0) as interpreter,
            attribution_registrations(
                store,
                runner := GrpcModelRunner(channel, max_capture_bytes=1 << 29, timeout_s=300),
                models,
                GrpcSequences(channel, timeout_s=300),
                max_prompt_tokens=512,
                max_features=5000,
                observe=lambda seconds: None,
                interpreting=Interpreting(
                    interpreter,
                    endpoint=endpoint.url,
                    model="rules",
                    embedding_model="",
                    structured=False,
                    concurrency=4,
                    max_attempts=3,
                    observe=PrometheusInterpretation(CollectorRegistry()),
                ),
            ) as attribution,
            serving("attribution", settings, attribution) as features,
            AsyncClient.to(activations=Endpoint(server.target), attribution=Endpoint(features.target)) as client,
        ):
            await client.corpora.upload("planted", documents(num_tokens // 180 + 1, seed=2))
            spec = harvest_spec(
                model=f"models/{model}",
                dataset="datasets/planted",
                corpus="corpora/planted",
                num_tokens=num_tokens,
                held_out_share=0.0,
                sequence_tokens=128,
                max_norm_ratio=0.0,
            )
            await client.operations.wait(await client.harvests.create("planted", spec=spec))
            await plant(store, runner, model, num_documents=num_documents)
            index = await client.features.index("planted", "planted", dataset="planted", settings=SETTINGS)
            await client.operations.wait(index)
            yield Planted(client, endpoint, store)
