"""Corpora: text on its way into the bucket."""

import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
from google.longrunning import operations_pb2

from weft.activations.v1 import corpora_pb2, service_pb2, service_pb2_grpc
from weft_client.aio.calls import pages, unary
from weft_client.aio.connection import AsyncConnection
from weft_client.names import full_name
from weft_common.client import error_from_rpc

PIECE_BYTES = 1 << 20
FILE_S = 86_400.0
"""Deadline of one file on its way in: without one the service ends the call after ten minutes."""
Documents = Iterable[tuple[str, str | bytes]]
"""(name, UTF-8 text) of each document, in order."""


class AsyncCorpora:
    """Corpora that harvests read."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.ActivationServiceAsyncStub":
        return service_pb2_grpc.ActivationServiceStub(self._connection.channel("activations"))

    async def upload(
        self, corpus_id: str, documents: Documents, *, timeout_s: float | None = None
    ) -> service_pb2.Corpus:
        """
        Store documents as `corpora/{corpus_id}`; the same documents again are success.

        Raises:
            AlreadyExistsError: other documents have that name.
        """
        try:
            return await self._stub.UploadCorpus(_pieces(corpus_id, documents), timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    async def upload_file(self, corpus_id: str, path: Path, name: str = "") -> corpora_pb2.UploadCorpusFileResponse:
        """
        Store a file of text, JSON lines or Parquet as it is, for `import_files`.

        Args:
            corpus_id: The corpus that it is for; it need not be there yet.
            path: The file.
            name: What it is called there; its own name where none is given.
        """
        try:
            return await self._stub.UploadCorpusFile(_file_pieces(corpus_id, name or path.name, path), timeout=FILE_S)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    async def import_files(
        self, corpus_id: str, *, spec: corpora_pb2.CorpusImportSpec, request_id: str = ""
    ) -> operations_pb2.Operation:
        """
        Make a corpus of files in the bucket; `operations.wait` gives the Corpus.

        Args:
            corpus_id: The new corpus.
            spec: Where the files lie, and what to take of them.
            request_id: A UUID of your own, to repeat this very request; one is made where there is none.
        """
        request = corpora_pb2.ImportCorpusRequest(
            corpus_id=corpus_id, spec=spec, request_id=request_id or str(uuid.uuid4())
        )
        return await unary(self._stub.ImportCorpus, request)

    async def get(self, name: str) -> service_pb2.Corpus:
        """Describe one corpus."""
        return await unary(self._stub.GetCorpus, service_pb2.GetCorpusRequest(name=full_name("corpora", name)))

    def list(self) -> AsyncIterator[service_pb2.Corpus]:
        """All corpora, by name."""
        return pages(self._stub.ListCorpora, service_pb2.ListCorporaRequest(), lambda page: page.corpora)


async def _file_pieces(corpus_id: str, name: str, path: Path) -> AsyncIterator[corpora_pb2.UploadCorpusFileRequest]:
    first = True
    with path.open("rb") as file:
        while (data := file.read(PIECE_BYTES)) or first:
            yield corpora_pb2.UploadCorpusFileRequest(
                corpus_id=corpus_id if first else "", file=name if first else "", data=data
            )
            first = False


async def _pieces(corpus_id: str, documents: Documents) -> AsyncIterator[service_pb2.UploadCorpusRequest]:
    first = True
    for document, text in documents:
        data = text.encode() if isinstance(text, str) else text
        for start in range(0, max(len(data), 1), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            yield service_pb2.UploadCorpusRequest(corpus_id=corpus_id if first else "", document=document, text=piece)
            first = False
