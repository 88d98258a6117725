"""Corpora: text on its way into the bucket."""

from collections.abc import AsyncIterator, Iterable

import grpc

from weft.activations.v1 import service_pb2, service_pb2_grpc
from weft_client.aio.connection import AsyncConnection
from weft_common.client import error_from_rpc

PIECE_BYTES = 1 << 20
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


async def _pieces(corpus_id: str, documents: Documents) -> AsyncIterator[service_pb2.UploadCorpusRequest]:
    first = True
    for document, text in documents:
        data = text.encode() if isinstance(text, str) else text
        for start in range(0, max(len(data), 1), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            yield service_pb2.UploadCorpusRequest(corpus_id=corpus_id if first else "", document=document, text=piece)
            first = False
