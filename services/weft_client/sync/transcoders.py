# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Finished transcoders."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from google.longrunning import operations_pb2

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import pages, stream, unary
from weft_client.sync.connection import Connection
from weft_client.transcoder_folder import files_of, place_for
from weft_common.client import error_from_rpc
from weft_common.errors import DataLossError

PIECE_BYTES = 1 << 20
FILE_S = 86_400.0
"""Deadline of one file on its way in: without one the trainer ends the call after ten minutes."""


class Transcoders:
    """Transcoders that the trainer keeps; `runs.export` makes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.TrainingServiceStub":
        return service_pb2_grpc.TrainingServiceStub(self._connection.channel("trainer"))

    def get(self, name: str) -> messages_pb2.Transcoder:
        """Describe one transcoder."""
        request = service_pb2.GetTranscoderRequest(name=full_name("transcoders", name))
        return unary(self._stub.GetTranscoder, request)

    def list(self) -> Iterator[messages_pb2.Transcoder]:
        """All transcoders, newest first."""
        return pages(self._stub.ListTranscoders, service_pb2.ListTranscodersRequest(), lambda page: page.transcoders)

    def import_files(
        self, transcoder_id: str, *, prefix: str, model: str, model_revision: str
    ) -> messages_pb2.Transcoder:
        """Take over files in circuit-tracer's layout that lie in the bucket under a prefix."""
        request = service_pb2.ImportTranscoderRequest(
            transcoder_id=transcoder_id,
            prefix=prefix,
            model=full_name("models", model),
            model_revision=model_revision,
        )
        return unary(self._stub.ImportTranscoder, request, timeout_s=None)

    def upload(self, transcoder_id: str, folder: Path, *, progress: Callable[[str, int], None] | None = None) -> str:
        """
        Store the files of a folder in the bucket and return their prefix, for `convert_files`; another upload for the
        same transcoder has another prefix.

        Args:
            transcoder_id: The transcoder that they will become.
            folder: Everything below it but links and hidden files.
            progress: Called with each file's path and size once it is stored.

        Raises:
            InvalidArgumentError: there is nothing in the folder, or a pickled checkpoint.
        """
        prefix, upload = "", uuid.uuid4().hex
        for name, path in files_of(folder):
            try:
                pieces = _pieces(transcoder_id, upload, name, path, clear=not prefix)
                answer = self._stub.UploadTranscoderFile(pieces, timeout=FILE_S)
            except grpc.RpcError as error:
                raise error_from_rpc(error) from error
            prefix = answer.prefix
            if progress is not None:
                progress(name, answer.size_bytes)
        return prefix

    def convert_files(
        self,
        transcoder_id: str,
        *,
        prefix: str,
        model: str,
        model_revision: str,
        layout: str = "auto",
        input_hook: str = "",
    ) -> operations_pb2.Operation:
        """Make a transcoder of files in any known layout in the bucket; `operations.wait` gives the Transcoder."""
        request = service_pb2.ConvertFilesRequest(
            transcoder_id=transcoder_id,
            prefix=prefix,
            format=layout,
            model=full_name("models", model),
            model_revision=model_revision,
            input_hook=input_hook,
        )
        return unary(self._stub.ConvertFiles, request)

    def convert(self, name: str, *, layout: str) -> operations_pb2.Operation:
        """Write a transcoder in another layout; `operations.wait` gives TranscoderFiles."""
        request = service_pb2.ConvertTranscoderRequest(name=full_name("transcoders", name), format=layout)
        return unary(self._stub.ConvertTranscoder, request)

    def download(
        self,
        files: messages_pb2.TranscoderFiles,
        folder: Path,
        *,
        progress: Callable[[str, int], None] | None = None,
    ) -> None:
        """
        Write what `convert` made into a folder.

        Raises:
            DataLossError: a file's path leads out of the folder, or less arrived than was written.
        """
        for file in files.files:
            place = place_for(folder, file.path)
            partial = place.with_name(place.name + ".part")
            request = service_pb2.ReadTranscoderFileRequest(name=files.transcoder, format=files.format, file=file.path)
            arrived = 0
            with partial.open("wb") as written:
                for piece in stream(self._stub.ReadTranscoderFile, request, service_pb2.ReadTranscoderFileResponse):
                    arrived += written.write(piece.data)
            if arrived != file.size_bytes:
                raise DataLossError(f"{arrived} of {file.size_bytes} bytes of {file.path} arrived; ask again")
            partial.replace(place)
            if progress is not None:
                progress(file.path, arrived)


def _pieces(
    transcoder_id: str, upload: str, name: str, path: Path, *, clear: bool
) -> Iterator[service_pb2.UploadTranscoderFileRequest]:
    first = True
    with path.open("rb") as file:
        while (data := file.read(PIECE_BYTES)) or first:
            yield service_pb2.UploadTranscoderFileRequest(
                transcoder_id=transcoder_id if first else "",
                file=name if first else "",
                data=data,
                clear=first and clear,
                upload=upload if first else "",
            )
            first = False
