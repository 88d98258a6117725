"""Puts the service together from its parts; `__main__` and the tests use the same one."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from weft.activations.v1 import service_pb2, service_pb2_grpc
from weft_activations.adapters.arrow_records import ArrowFiles
from weft_activations.adapters.parquet_records import ParquetFiles
from weft_activations.adapters.text_records import JsonLines, TextFiles
from weft_activations.backend_choice import backend_versions, calls_at_once
from weft_activations.core.generating import Generation
from weft_activations.core.harvest_worker import HarvestWorker
from weft_activations.core.harvests import Harvests
from weft_activations.core.importing import CorpusImporter, ImportLimits
from weft_activations.core.inference import Inference
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import DatasetCatalog, ModelBackend
from weft_activations.core.records import ReadLimits
from weft_activations.core.replacing_limits import CallLimits
from weft_activations.corpus_calls import IMPORT_KIND, CorpusCalls, import_kind
from weft_activations.servicer import HARVEST_KIND, ActivationServicer, harvest_kind
from weft_activations.settings import ActivationsSettings
from weft_common.operations import OperationManager
from weft_common.operations_servicer import operations_registration
from weft_common.server import Registration
from weft_store.operations import ObjectOperationStore
from weft_store.port import ObjectStore

__all__ = ["registrations"]

SERVICE = "activations"
# What can change activations or tokens though model and corpus stay.
_LINEAGE = ("weft", "tokenizers", "torch", "transformers")


def import_limits(settings: ActivationsSettings) -> ImportLimits:
    """Say what an import may take in."""
    return ImportLimits(
        prefixes=settings.corpus_prefixes,
        file_bytes=settings.max_corpus_file_bytes,
        corpus_bytes=settings.max_corpus_bytes,
        documents=settings.max_corpus_documents,
        reading=ReadLimits(
            record_bytes=settings.max_document_bytes,
            read_bytes=settings.max_corpus_read_bytes,
            expansion=settings.max_corpus_expansion,
            seconds=settings.max_corpus_read_s,
        ),
    )


@asynccontextmanager
async def registrations(
    settings: ActivationsSettings, backend: ModelBackend, store: ObjectStore, catalog: DatasetCatalog
) -> AsyncIterator[Sequence[Registration]]:
    """Run the service's background work for as long as the context lasts."""
    inference = Inference(
        backend,
        max_capture_bytes=settings.max_capture_bytes,
        max_captured_bytes=settings.max_captured_bytes,
        calls_at_once=calls_at_once(settings),
    )
    try:
        planner = HarvestPlanner(store, inference)
        worker = HarvestWorker(
            store,
            catalog,
            inference,
            planner,
            owner=uuid.uuid4().hex,
            lease_s=settings.lease_s,
            patience_s=settings.patience_s,
        )
        versions = {name: version(name) for name in _LINEAGE} | backend_versions(settings)
        harvests = Harvests(
            store, catalog, inference, planner, max_lease_bytes=settings.max_lease_bytes, versions=versions
        )
        limits = import_limits(settings)
        importer = CorpusImporter(
            store, [TextFiles(), JsonLines(), ParquetFiles(), ArrowFiles()], limits, weft_version=version("weft")
        )
        operations = OperationManager(
            SERVICE,
            ObjectOperationStore(store, SERVICE),
            {HARVEST_KIND: harvest_kind(worker, SERVICE), IMPORT_KIND: import_kind(importer)},
        )
        servicer = ActivationServicer(
            inference,
            Generation(inference, max_bytes=settings.max_generation_bytes),
            harvests,
            operations,
            CorpusCalls(store, importer, limits, operations, max_upload_bytes=settings.max_corpus_bytes),
            replace_limits=CallLimits(
                held_bytes=settings.max_capture_bytes,
                sent_bytes=settings.max_replace_bytes,
                passes=settings.max_replace_passes,
                call_s=settings.max_replace_s,
            ),
        )
        async with operations.run():
            yield [
                Registration(
                    service_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name,
                    lambda server: service_pb2_grpc.add_ActivationServiceServicer_to_server(servicer, server),
                ),
                operations_registration(operations),
            ]
    finally:
        inference.close()
