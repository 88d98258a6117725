"""How the attribution service is put together from a bucket, a base model and a folder of models."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from weft.attribution.v1 import service_pb2, service_pb2_grpc
from weft.features.v1 import jobs_pb2, jobs_pb2_grpc, labels_pb2, labels_pb2_grpc
from weft.features.v1 import service_pb2 as features_pb2
from weft.features.v1 import service_pb2_grpc as features_pb2_grpc
from weft_attribution.core.dataset_holding import DatasetHolding
from weft_attribution.core.faithfulness import FaithfulnessSweep
from weft_attribution.core.feature_export.exporting import FeatureExports
from weft_attribution.core.feature_graphs import FeatureGraphs
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.labelled import LabelTable
from weft_attribution.core.feature_index.matching import FeatureMatching
from weft_attribution.core.feature_index.on_prompt import PromptActivations
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.queries import FeatureQueries
from weft_attribution.core.feature_index.sequences import SequenceSource
from weft_attribution.core.frozen_graphs import FrozenGraphs
from weft_attribution.core.gate import Gate
from weft_attribution.core.graphs import Graphs
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.open_graphs import OpenGraphs
from weft_attribution.core.pipeline import Limits
from weft_attribution.core.ports import DatasetHolds, ModelRunner
from weft_attribution.core.reading import GraphReading
from weft_attribution.core.row_helper import RowHelper
from weft_attribution.core.standing_labels import StandingLabels
from weft_attribution.core.steered_text import SteeredText
from weft_attribution.core.steering import Steers
from weft_attribution.core.through_attention import AttentionReading
from weft_attribution.features_servicer import FeatureDomain, FeatureServicer
from weft_attribution.interpretation_requests import Interpreting
from weft_attribution.interpretation_work import InterpretationWork
from weft_attribution.servicer import KIND, AttributionServicer, GraphWork
from weft_attribution.servicer_batches import BATCH, BatchWork
from weft_attribution.servicer_feature_export import EXPORT, ExportWork
from weft_attribution.servicer_feature_index import INDEX, IndexWork
from weft_attribution.servicer_jobs import FeatureJobServicer
from weft_attribution.servicer_labels import LabelServicer
from weft_attribution.servicer_steering import FAITHFULNESS, FaithfulnessWork, SteeringDomain
from weft_common.logging import get_logger
from weft_common.operations import OperationManager
from weft_common.operations_servicer import operations_registration
from weft_common.server import Registration
from weft_store.operations import ObjectOperationStore
from weft_store.port import ObjectStore

__all__ = ["SERVICE", "registrations"]

SERVICE = "attribution"
_LOOK_S = 2.0
"""Seconds between two looks for graphs that hand out rows."""
_log = get_logger(__name__)


@asynccontextmanager
async def registrations(
    store: ObjectStore,
    runner: ModelRunner,
    models_dir: Path,
    sequences: SequenceSource,
    *,
    max_prompt_tokens: int,
    max_features: int,
    memory_bytes: int = 1 << 30,
    export_scratch_bytes: int = 3 << 30,
    workers: int = 1,
    lease_s: float = 20.0,
    shared_rows: int = 0,
    max_message_bytes: int = 64 << 20,
    max_waiting: int = 1000,
    observe: Callable[[Mapping[str, float]], None],
    interpreting: Interpreting | None = None,
    holds: DatasetHolds | None = None,
) -> AsyncIterator[Sequence[Registration]]:
    """Give what a server needs to answer, and do the long work for as long as the context lasts."""
    models, opened, gate = ModelFolder(models_dir), OpenGraphs(store), Gate()
    graphs = Graphs(
        store,
        runner,
        models,
        max_prompt_tokens=max_prompt_tokens,
        max_features=max_features,
        memory_bytes=memory_bytes,
        workers=workers,
        part_rows=shared_rows,
        gate=gate,
        opened=opened,
    )
    limits = Limits(batch_size=0, workers=workers, max_active=max_features, max_features=0, memory_bytes=memory_bytes)
    helper = RowHelper(store, models, limits, gate, _warn) if shared_rows else None
    steering = SteeringDomain(Steers(store, runner, models, opened), FaithfulnessSweep(store, runner, models, opened))
    batches = BatchWork(graphs)
    standing = StandingLabels(store, memory_bytes=memory_bytes // 4)
    label_store = LabelStore(store, changed=standing.changed)
    indexes = OpenIndexes(store, memory_bytes=memory_bytes)
    interpretation = InterpretationWork(store, indexes, label_store, runner, interpreting)
    features_of = FeatureDomain(
        FeatureIndexing(store, runner, sequences, memory_bytes=memory_bytes, workers=workers, lease_s=lease_s),
        FeatureQueries(indexes, LabelTable(standing, memory_bytes=memory_bytes // 4)),
        FeatureMatching(indexes, memory_bytes=memory_bytes),
        PromptActivations(
            store, runner, models, indexes, max_prompt_tokens=max_prompt_tokens, memory_bytes=memory_bytes // 2
        ),
        SteeredText(store, runner, models, max_prompt_tokens=max_prompt_tokens),
        opened,
        FeatureExports(store, runner, models, indexes, scratch_bytes=export_scratch_bytes),
        FeatureGraphs(store, graphs.requests),
        DatasetHolding(holds),
    )
    kinds = {
        KIND: GraphWork(graphs, observe).kind(),
        FAITHFULNESS: FaithfulnessWork(steering.sweep).kind(),
        BATCH: batches.kind(),
        **interpretation.kinds(),
        INDEX: IndexWork(features_of.indexing, features_of.holding).kind(),
        EXPORT: ExportWork(features_of.exports).kind(),
    }
    manager = OperationManager(SERVICE, ObjectOperationStore(store, SERVICE), kinds)
    frozen = FrozenGraphs(
        store, runner, models, opened, graphs.check, max_features=max_features, memory_bytes=memory_bytes
    )
    attribution = AttributionServicer(
        graphs,
        GraphReading(store, runner, models, opened),
        AttentionReading(runner, models_dir, frozen),
        steering,
        manager,
        max_message_bytes=max_message_bytes,
        max_waiting=max_waiting,
    )
    batches.operations, batches.start_graph = manager, attribution.start_graph
    features = FeatureServicer(store, runner, models, features_of, manager)
    features.interpretation = interpretation
    labels = LabelServicer(store, label_store)
    jobs = FeatureJobServicer(store, manager, interpretation, features.start)
    async with manager.run(), _helping(helper):
        yield [
            Registration(
                service_pb2.DESCRIPTOR.services_by_name["AttributionService"].full_name,
                lambda server: service_pb2_grpc.add_AttributionServiceServicer_to_server(attribution, server),
            ),
            Registration(
                features_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name,
                lambda server: features_pb2_grpc.add_FeatureServiceServicer_to_server(features, server),
            ),
            Registration(
                labels_pb2.DESCRIPTOR.services_by_name["LabelService"].full_name,
                lambda server: labels_pb2_grpc.add_LabelServiceServicer_to_server(labels, server),
            ),
            Registration(
                jobs_pb2.DESCRIPTOR.services_by_name["FeatureJobService"].full_name,
                lambda server: jobs_pb2_grpc.add_FeatureJobServiceServicer_to_server(jobs, server),
            ),
            operations_registration(manager),
        ]


@asynccontextmanager
async def _helping(helper: RowHelper | None) -> AsyncIterator[None]:
    """Help with graphs that other replicas make, for as long as the context lasts."""
    if helper is None:
        yield
        return
    stopping = threading.Event()

    async def look_forever() -> None:
        while not stopping.is_set():
            helped = 0
            try:
                helped = await asyncio.to_thread(helper.look, lambda: not stopping.is_set())
            except Exception as error:
                # The next look may find the bucket again; what another release hands out is no reason to stop looking.
                _log.warning("not_helping", reason=repr(error))
            if not helped:
                await asyncio.sleep(_LOOK_S)

    looking = asyncio.create_task(look_forever())
    try:
        yield
    finally:
        stopping.set()
        looking.cancel()
        await asyncio.wait({looking})


def _warn(prefix: str, reason: str) -> None:
    _log.warning("cannot_help", work=prefix, reason=reason)
