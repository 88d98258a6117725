"""Graphs on a release: asked for, waited for, and compared but for their names and times."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from cluster_rig.release import Release
from cluster_rig.work import patiently
from google.longrunning import operations_pb2

from weft.attribution.v1 import messages_pb2 as attribution
from weft.attribution.v1 import service_pb2 as attribution_rpc
from weft.attribution.v1.service_pb2_grpc import AttributionServiceStub
from weft_attribution.core.records import edges_key, graph_key
from weft_common.errors import WeftError
from weft_common.operation_store import read_record
from weft_store import ObjectStore
from weft_store.documents import read_json
from weft_store.operations import ObjectOperationStore

__all__ = ["LongGraph", "create_graph", "get_graph", "graph_without_times", "made_anew", "owners"]

_MANY_FEATURES = 50_000


@dataclass(frozen=True)
class LongGraph:
    """A graph that takes long enough to be interrupted, as one replica made it undisturbed."""

    spec: attribution.GraphSpec
    document: dict[str, Any]


def create_graph(channel: grpc.Channel, graph_id: str, spec: attribution.GraphSpec) -> operations_pb2.Operation:
    """Ask for a graph; a service that is away meanwhile is asked again, and finds what it was asked before."""
    request = attribution_rpc.CreateGraphRequest(graph_id=graph_id, spec=spec, request_id=str(uuid.uuid4()))
    stub = AttributionServiceStub(channel)
    operation: operations_pb2.Operation = patiently(lambda: stub.CreateGraph(request, timeout=60))
    return operation


def made_anew(spec: attribution.GraphSpec, number: int) -> attribution.GraphSpec:
    """Give the spec of the same graph that takes no rows of an earlier one: another bound, far above what there is."""
    anew = attribution.GraphSpec()
    anew.CopyFrom(spec)
    anew.max_features = _MANY_FEATURES + number
    return anew


def get_graph(release: Release, graph_id: str) -> attribution.Graph:
    """Read a graph with its JSON."""
    with release.channel("attribution") as channel:
        request = attribution_rpc.GetGraphRequest(name=f"graphs/{graph_id}")
        graph: attribution.Graph = AttributionServiceStub(channel).GetGraph(request, timeout=60)
        return graph


def graph_without_times(store: ObjectStore, graph_id: str) -> dict[str, Any]:
    """Return all that is stored of a graph, its edges as a digest of their file, less its name and times."""
    document: dict[str, Any] = read_json(store, graph_key(graph_id))[0]
    for key in ("seconds", "stage_seconds"):
        del document["statistics"][key]
    metadata = document["json"]["metadata"]
    assert metadata.pop("slug") == graph_id
    del metadata["info"]["create_time_ms"]
    return {**document, "edges": hashlib.sha256(store.get(edges_key(graph_id))).hexdigest()}


@contextmanager
def owners(store: ObjectStore, *operations: str) -> Iterator[dict[str, list[str]]]:
    """Watch who works on operations for as long as the context lasts; yields the replicas of each, first one first."""
    seen: dict[str, list[str]] = {name: [] for name in operations}
    ended = threading.Event()
    records = ObjectOperationStore(store, "attribution")

    def look() -> None:
        while not ended.wait(0.2):
            for name, found in seen.items():
                try:
                    owner = read_record(records, name)[0].owner
                except WeftError:
                    # It is not there yet, or the bucket does not answer.
                    continue
                if owner and owner not in found:
                    found.append(owner)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
