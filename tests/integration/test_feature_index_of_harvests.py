"""An index over what the services themselves harvested: every window stands where the model sees it."""

import pydoc_data.topics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from attribution_real import random_transcoder
from harvest_processes import harvest_spec
from prometheus_client import CollectorRegistry
from tiny_models import make_llama

from weft.activations.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.grpc_catalog import GrpcCatalog
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_attribution.adapters.grpc_activations import GrpcModelRunner
from weft_attribution.adapters.grpc_sequences import GrpcSequences
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.sequences import read_text
from weft_attribution.core.feature_index.settings import IndexKeys, IndexRequest, IndexSettings
from weft_cache.settings import CacheSettings
from weft_cache.wiring import registration
from weft_common.client import aio_channel
from weft_common.errors import NotFoundError
from weft_common.server import serving
from weft_store.opening import open_store
from weft_store.port import ObjectStore


@asynccontextmanager
async def services(folder: Path) -> AsyncIterator[tuple[ObjectStore, grpc.aio.Channel]]:
    """A cache and an activations service with the model `tiny` over one bucket."""
    models, url = folder / "models", f"file://{folder}/bucket"
    make_llama(models / "tiny", add_bos=True)
    store = open_store(url)
    cache = CacheSettings(insecure_no_auth=True, bucket_url=url, drain_s=0)
    settings = ActivationsSettings(insecure_no_auth=True, models_dir=models, cache_target="127.0.0.1:1", bucket_url=url)
    backend = TransformersBackend(models, dtype="float32", max_prompt_tokens=512, device="cpu", threads=0)
    async with (
        serving("cache", cache, [registration(store, registry=CollectorRegistry())]) as catalog,
        aio_channel(catalog.target) as to_cache,
        registrations(settings, backend, store, GrpcCatalog(to_cache)) as served,
        serving("activations", settings, served) as server,
        aio_channel(server.target) as channel,
    ):
        yield store, channel


async def harvest(channel: grpc.aio.Channel, **changes: Any) -> None:
    """Harvest some text into the dataset `d` and wait for it."""
    stub: Any = service_pb2_grpc.ActivationServiceStub(channel)
    pieces = [
        service_pb2.UploadCorpusRequest(corpus_id="c", document=name, text=text[:400].encode())
        for name, text in sorted(pydoc_data.topics.topics.items())[:12]
    ]
    await stub.UploadCorpus(iter(pieces))
    request = service_pb2.CreateHarvestRequest(harvest_id="h", spec=harvest_spec("tiny", **changes))
    await stub.CreateHarvest(request)
    while True:
        found = await stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/h"))
        if found.state != messages_pb2.HARVEST_STATE_RUNNING:
            assert found.state == messages_pb2.HARVEST_STATE_SUCCEEDED, found
            return


@pytest.mark.parametrize("max_norm_ratio", [0.0, 1.3])
async def test_windows_stand_where_the_model_sees_them(tmp_path: Path, max_norm_ratio: float) -> None:
    """Activations in windows are those of the model run on that very sequence, whether tokens were left out or not."""
    async with services(tmp_path) as (store, channel):
        await harvest(channel, max_norm_ratio=max_norm_ratio)
        runner = GrpcModelRunner(channel, max_capture_bytes=1 << 26, timeout_s=60)
        sequences = GrpcSequences(channel, timeout_s=60)
        prompt = pydoc_data.topics.topics["assert"][:100]
        await random_transcoder(store, tmp_path, runner, "tiny", "t", prompt=prompt, num_features=24, active=4)
        indexing = FeatureIndexing(store, runner, sequences, memory_bytes=1 << 28, workers=2)
        settings = IndexSettings(num_top=3, num_sampled=6, num_quantiles=3, window_tokens=6)
        request = IndexRequest("t", "i", "d", held_out=False, max_tokens=0, settings=settings)
        manifest = await indexing.build(request, lambda done, total: None)
        index = OpenIndexes(store).open("t")
        found = await sequences.sequences("d", held_out=False, max_tokens=0)
        whole = sum(len(ids) - len(skipped) for ids, skipped in zip(found.token_ids, found.skipped, strict=True))
        assert manifest["num_tokens"] == whole
        assert not found.norm_limits
        kept = list(store.list("harvests/h/left_out/"))
        assert bool(kept) == bool(max_norm_ratio)
        # A harvest of before this was written down is run through the model again, and gives the same text.
        for info in kept:
            store.delete(info.key)
        older = await sequences.sequences("d", held_out=False, max_tokens=0)
        assert bool(older.norm_limits) == bool(max_norm_ratio)
        again = await indexing.build(replace(request, index_id="again"), lambda done, total: None)
        assert again["num_tokens"] == whole
        texts = [read_text(store, IndexKeys("t", name)) for name in ("i", "again")]
        assert texts[0] is not None
        assert texts[1] is not None
        np.testing.assert_array_equal(texts[0][0].kept_P, texts[1][0].kept_P)
        seen = 0
        for layer in range(3):
            weights, biases, _ = (np.asarray(each, np.float64) for each in _rows(store, layer))
            for feature in range(0, 24, 5):
                for window in index.examples(layer, feature).top:
                    ids = [int(i) for i in found.token_ids[window.sequence]]
                    stop = window.start + len(window.token_ids)
                    assert list(window.token_ids) == ids[window.start : stop]
                    capture = await runner.capture("tiny", ids, [f"layers.{layer}.mlp_in"])
                    pre = capture.tensors[f"layers.{layer}.mlp_in"] @ weights[feature] + biases[feature]
                    here = np.maximum(pre[window.start : stop], 0)
                    # Shards hold bfloat16; and what was left out is 0, whatever the model does there.
                    active = np.array(window.activations) > 0
                    np.testing.assert_allclose(np.array(window.activations)[active], here[active], rtol=0.05, atol=0.02)
                    assert window.peak == pytest.approx(here[window.peak_at], rel=0.05, abs=0.02)
                    seen += 1
        assert seen > 20


def _rows(store: ObjectStore, layer: int) -> Any:
    from weft_attribution.core.transcoder import TranscoderReader

    return TranscoderReader(store, "t").encoder_rows(layer, 0, 24)


async def test_sequences_are_read_as_far_as_they_are_asked_for(tmp_path: Path) -> None:
    """A part takes the first sequences; a dataset that nobody harvested has none."""
    async with services(tmp_path) as (_, channel):
        await harvest(channel)
        source = GrpcSequences(channel, timeout_s=60)
        part = await source.sequences("d", held_out=False, max_tokens=50)
        whole = await source.sequences("d", held_out=False, max_tokens=0)
        kept = [len(ids) - len(skipped) for ids, skipped in zip(part.token_ids, part.skipped, strict=True)]
        assert sum(kept) >= 50 > sum(kept[:-1])
        assert all((ids == other).all() for ids, other in zip(part.token_ids, whole.token_ids, strict=False))
        assert len(whole.token_ids) > len(part.token_ids)
        with pytest.raises(NotFoundError):
            await source.sequences("other", held_out=False, max_tokens=0)
