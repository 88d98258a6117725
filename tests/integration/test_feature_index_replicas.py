"""Two attribution services as processes make one index together; the one that was asked is killed in the middle."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from harvest_processes import TOKEN, Service
from index_rig import IndexRig

from weft.cache.v1 import service_pb2 as cache_pb2
from weft.cache.v1.service_pb2_grpc import CacheServiceStub
from weft.features.v1 import index_pb2, service_pb2_grpc
from weft_attribution import converting_features as converting
from weft_attribution.core.feature_index.datasets import read_dataset
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.sequences import find_text
from weft_common.client import channel, error_from_rpc
from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_store.documents import read_json
from weft_store.opening import open_store
from weft_store.port import ObjectStore

LAYERS = 16
# So much that one replica does not make it all before the other has seen that there is something to make.
SHAPE: dict[str, Any] = {"num_layers": LAYERS, "num_features": 2048, "d_model": 16, "shard_sequences": 4}
LENGTHS = [100] * 40
NO_MODEL: Any = None


def _delete_dataset(cache: grpc.Channel) -> None:
    try:
        CacheServiceStub(cache).DeleteDataset(cache_pb2.DeleteDatasetRequest(name="datasets/d"))
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error


def _bytes_of(store: ObjectStore, prefix: str) -> dict[str, str]:
    """When an index was asked for is all that may differ, and stands in two files."""
    return {
        info.key: hashlib.sha256(store.get(info.key)).hexdigest()
        for info in store.list(prefix)
        if not info.key.endswith(("manifest.json", "request.json"))
    }


@pytest.mark.e2e
@pytest.mark.timeout(280)
def test_killed_replica_costs_only_what_it_had_not_stored(tmp_path: Path) -> None:
    """
    The other takes its layers over, touches no file that was there, and comes to the bytes of one replica alone. Until
    then nobody deletes the dataset, although who began to hold it is dead.
    """
    store = open_store(f"file://{tmp_path}/bucket")
    rig = IndexRig.make(store, LENGTHS, **SHAPE)
    request = rig.request()
    keys = request.keys
    # The text is there already, so that nobody has to serve the model.
    asyncio.run(find_text(store, NO_MODEL, rig, read_dataset(store, "d", held_out=False), request))
    (tmp_path / "models").mkdir()
    cache = Service("cache", tmp_path)
    settings = {
        "models_dir": str(tmp_path / "models"),
        "activations_target": "127.0.0.1:1",
        "cache_target": cache.target,
        "cache_token": TOKEN,
    }
    replicas = [Service("attribution", tmp_path, lease_s="1", threads="1", **settings) for _ in range(2)]
    try:
        for service in (cache, *replicas):
            service.start()
        with (
            channel(replicas[0].target, token=TOKEN) as asked,
            channel(replicas[1].target, token=TOKEN) as other,
            channel(cache.target, token=TOKEN) as catalog,
        ):
            for each in (asked, other, catalog):
                grpc.channel_ready_future(each).result(timeout=120)
            operation = service_pb2_grpc.FeatureServiceStub(asked).IndexFeatures(
                converting.index_request_to_proto(request)
            )

            def layers() -> dict[str, float]:
                return {info.key: info.modified_s for info in store.list(keys.layers)}

            def owners() -> set[str]:
                found = set()
                for info in store.list(f"{keys.leases}/"):
                    try:
                        lease = read_json(store, info.key)[0]
                    except NotFoundError:
                        continue
                    if lease["expires_s"]:
                        found.add(lease["owner"])
                return found

            until = time.monotonic() + 120
            while (not layers() or len(owners()) < 2) and time.monotonic() < until:
                time.sleep(0.01)
            replicas[0].kill()
            before = layers()
            assert 0 < len(before) < LAYERS, "there was no middle to kill it in"
            with pytest.raises(FailedPreconditionError, match=f"held by {operation.name}"):
                _delete_dataset(catalog)
            operations = operations_pb2_grpc.OperationsStub(other)
            while not operation.done and time.monotonic() < until:
                operation = operations.WaitOperation(operations_pb2.WaitOperationRequest(name=operation.name))
            if operation.done:
                _delete_dataset(catalog)
    finally:
        for service in (cache, *replicas):
            service.stop()
    made, metadata = index_pb2.FeatureIndex(), index_pb2.FeatureIndexMetadata()
    assert operation.response.Unpack(made), operation.error.message or replicas[1].log()
    assert operation.metadata.Unpack(metadata)
    assert metadata.progress.completed == metadata.progress.total == LAYERS * made.num_tokens
    assert {key: modified_s for key, modified_s in layers().items() if key in before} == before

    alone = open_store("memory://")
    single = IndexRig.make(alone, LENGTHS, **SHAPE)
    indexing = FeatureIndexing(alone, NO_MODEL, single, memory_bytes=1 << 30, workers=1)
    asyncio.run(indexing.build(request, lambda done, total: None))
    assert _bytes_of(store, keys.prefix) == _bytes_of(alone, keys.prefix)
