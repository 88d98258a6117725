"""Features as files that other tools read."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from google.longrunning import operations_pb2

from weft.features.v1 import export_pb2, service_pb2_grpc
from weft_client.aio.calls import pages, stream, unary
from weft_client.aio.connection import AsyncConnection
from weft_client.names import full_name
from weft_client.transcoder_folder import place_for
from weft_common.errors import DataLossError

DELETE_S = 300.0
"""Deadline of a deletion, in seconds."""


class AsyncFeatureExports:
    """Exports of features; served by the attribution service."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.FeatureServiceAsyncStub":
        return service_pb2_grpc.FeatureServiceStub(self._connection.channel("attribution"))

    async def export(
        self,
        transcoder: str,
        export_id: str,
        *,
        layout: export_pb2.ExportFormat.ValueType,
        index: str = "",
        layers: Sequence[int] = (),
        model_name: str = "",
        source_set: str = "",
        num_logits: int = 0,
        validate_only: bool = False,
    ) -> operations_pb2.Operation:
        """
        Start writing features as files that other tools read; `operations.wait` gives a FeatureExport.

        Args:
            transcoder: The transcoder; it needs an index.
            export_id: Id of the export; the same request again goes on with it.
            layout: Whose files.
            index: Id of the index; empty takes the newest.
            layers: Layers; none means all.
            model_name: What the files call the model; empty takes its id.
            source_set: What the files call the features; empty takes the transcoder's id.
            num_logits: Top and bottom logits of each feature, 1 to 100; 0 means 10.
            validate_only: Check everything and change nothing.
        """
        request = export_pb2.ExportFeaturesRequest(
            transcoder=full_name("transcoders", transcoder),
            export_id=export_id,
            format=layout,
            index=f"{full_name('transcoders', transcoder)}/indexes/{index}" if index else "",
            layers=layers,
            model_name=model_name,
            source_set=source_set,
            num_logits=num_logits,
            validate_only=validate_only,
        )
        return await unary(self._stub.ExportFeatures, request)

    async def get_export(self, transcoder: str, export_id: str) -> export_pb2.FeatureExport:
        """Describe one export."""
        request = export_pb2.GetFeatureExportRequest(name=_export_name(transcoder, export_id))
        return await unary(self._stub.GetFeatureExport, request)

    def exports(self, transcoder: str) -> AsyncIterator[export_pb2.FeatureExport]:
        """All whole exports of a transcoder."""
        request = export_pb2.ListFeatureExportsRequest(parent=full_name("transcoders", transcoder))
        return pages(self._stub.ListFeatureExports, request, lambda page: page.exports)

    def exported_files(self, export: str) -> AsyncIterator[export_pb2.ExportedFile]:
        """All files of an export, named in full: `transcoders/{transcoder}/exports/{export}`."""
        request = export_pb2.ListExportedFilesRequest(parent=export)
        return pages(self._stub.ListExportedFiles, request, lambda page: page.files)

    async def download(
        self,
        export: export_pb2.FeatureExport,
        folder: Path,
        *,
        progress: Callable[[str, int], None] | None = None,
    ) -> None:
        """
        Write the files of an export into a folder; each is whole or not there.

        Args:
            export: As `export` or `get_export` gave it.
            folder: Where; folders below it are made.
            progress: Called with each file's path and size once it is written.

        Raises:
            DataLossError: A file's path leads out of the folder, or less arrived than was written.
        """
        async for file in self.exported_files(export.name):
            place = place_for(folder, file.path)
            partial = place.with_name(place.name + ".part")
            request = export_pb2.ReadFeatureExportRequest(name=export.name, path=file.path)
            arrived = 0
            with partial.open("wb") as written:
                async for piece in stream(self._stub.ReadFeatureExport, request, export_pb2.ReadFeatureExportResponse):
                    arrived += written.write(piece.data)
            if arrived != file.size_bytes:
                raise DataLossError(f"{arrived} of {file.size_bytes} bytes of {file.path} arrived; ask again")
            partial.replace(place)
            if progress is not None:
                progress(file.path, arrived)

    async def delete_export(self, transcoder: str, export_id: str) -> None:
        """Delete an export and its files."""
        request = export_pb2.DeleteFeatureExportRequest(name=_export_name(transcoder, export_id))
        await unary(self._stub.DeleteFeatureExport, request, timeout_s=DELETE_S)


def _export_name(transcoder: str, export_id: str) -> str:
    return f"{full_name('transcoders', transcoder)}/exports/{export_id}"
