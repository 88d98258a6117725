# ruff: noqa: N802  gRPC names the methods
"""The RPCs of FeatureService on exports, and the long work behind them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft.features.v1 import export_pb2, service_pb2_grpc
from weft_attribution import converting_export as converting
from weft_attribution.core.feature_export.exporting import FeatureExports
from weft_attribution.core.feature_export.settings import ExportLayout, ExportRequest
from weft_attribution.core.waited_threads import ended
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError
from weft_common.logging import get_logger
from weft_common.operations import OperationContext, OperationKind, OperationManager
from weft_common.pages import paginate
from weft_common.resource_names import parse_child_name, parse_name

__all__ = ["EXPORT", "ExportRpcs", "ExportWork"]

Context = grpc.aio.ServicerContext[object, object]
EXPORT = "feature-export"
_REPORT_EVERY_S = 0.3
_FILES_A_PAGE = 1000
_MOST_FILES_A_PAGE = 10_000
_log = get_logger(__name__)


class ExportWork:
    """
    The long work behind ExportFeatures.

    Args:
        exports: The domain.
    """

    def __init__(self, exports: FeatureExports) -> None:
        self._exports = exports

    def kind(self) -> OperationKind:
        """One at a time in a process: it goes over all weights and holds a file of a layer on disk."""
        return OperationKind(self._build, shared=False, max_running=1)

    async def _build(self, context: OperationContext) -> Message:
        asked = context.request
        assert isinstance(asked, export_pb2.ExportFeaturesRequest)
        request, begun = converting.request_from_proto(asked), time.time()
        latest, reported = (0, 0), (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal latest
            latest = done, total

        task = asyncio.ensure_future(self._exports.build(request, progress))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REPORT_EVERY_S)
                if latest != reported:
                    reported = latest
                    await context.report(converting.metadata_to_proto(request, begun, *reported))
        finally:
            task.cancel()
            # Until nothing writes any more the operation is not done, so that nobody deletes what is being written.
            await ended(task)
        return converting.export_to_proto(task.result())


class ExportRpcs(service_pb2_grpc.FeatureServiceServicer):
    """Starts, describes, reads and deletes exports, by the domain put into `exports`; long work goes to `work`."""

    exports: FeatureExports
    work: OperationManager

    async def ExportFeatures(
        self, request: export_pb2.ExportFeaturesRequest, context: Context
    ) -> operations_pb2.Operation:
        wanted, total = await asyncio.to_thread(self.exports.look_up, converting.request_from_proto(request))
        name = self.work.name(wanted.operation_id)
        if request.validate_only:
            return operations_pb2.Operation(name=name)
        # Asked for again after it failed or was cancelled, it goes on from what is stored.
        with suppress(NotFoundError, FailedPreconditionError):
            if (await self.work.get(name)).HasField("error"):
                await self.work.delete(name)
        return await self.work.start(
            EXPORT,
            wanted.operation_id,
            converting.request_to_proto(wanted),
            converting.metadata_to_proto(wanted, time.time(), 0, total),
        )

    async def GetFeatureExport(
        self, request: export_pb2.GetFeatureExportRequest, context: Context
    ) -> export_pb2.FeatureExport:
        transcoder, export_id = parse_child_name(request.name, "transcoders", "exports")
        return converting.export_to_proto(await asyncio.to_thread(self.exports.manifest, transcoder, export_id))

    async def ListFeatureExports(
        self, request: export_pb2.ListFeatureExportsRequest, context: Context
    ) -> export_pb2.ListFeatureExportsResponse:
        transcoder = parse_name(request.parent, "transcoders", field="parent")
        ids = await asyncio.to_thread(self.exports.ids, transcoder)
        page, next_token = paginate(ids, request.page_size, request.page_token)
        exports = []
        for export_id in page:
            try:
                manifest = await asyncio.to_thread(self.exports.manifest, transcoder, export_id)
            except NotFoundError:
                # It was deleted meanwhile.
                continue
            except DataLossError as error:
                _log.warning("export_passed_over", reason=error.message)
                continue
            exports.append(converting.export_to_proto(manifest))
        return export_pb2.ListFeatureExportsResponse(exports=exports, next_page_token=next_token)

    async def ListExportedFiles(
        self, request: export_pb2.ListExportedFilesRequest, context: Context
    ) -> export_pb2.ListExportedFilesResponse:
        transcoder, export_id = parse_child_name(request.parent, "transcoders", "exports", field="parent")

        def page() -> tuple[list[tuple[str, int]], str]:
            files = self.exports.files(transcoder, export_id)
            return paginate(
                files,
                request.page_size,
                request.page_token,
                lambda file: file[0],
                default_size=_FILES_A_PAGE,
                max_size=_MOST_FILES_A_PAGE,
            )

        found, next_token = await asyncio.to_thread(page)
        return export_pb2.ListExportedFilesResponse(
            files=[export_pb2.ExportedFile(path=path, size_bytes=size) for path, size in found],
            next_page_token=next_token,
        )

    async def ReadFeatureExport(
        self, request: export_pb2.ReadFeatureExportRequest, context: Context
    ) -> AsyncIterator[export_pb2.ReadFeatureExportResponse]:
        transcoder, export_id = parse_child_name(request.name, "transcoders", "exports")
        pieces = self.exports.pieces(transcoder, export_id, request.path)
        while (data := await asyncio.to_thread(next, pieces, None)) is not None:
            yield export_pb2.ReadFeatureExportResponse(data=data)

    async def DeleteFeatureExport(
        self, request: export_pb2.DeleteFeatureExportRequest, context: Context
    ) -> export_pb2.DeleteFeatureExportResponse:
        transcoder, export_id = parse_child_name(request.name, "transcoders", "exports")
        any_layout = ExportRequest(transcoder, export_id, ExportLayout.SAE_DASHBOARD)
        # Work that is not done is refused here, so that nobody writes what is being deleted.
        with suppress(NotFoundError):
            await self.work.delete(self.work.name(any_layout.operation_id))
        await asyncio.to_thread(self.exports.delete, transcoder, export_id)
        return export_pb2.DeleteFeatureExportResponse()
