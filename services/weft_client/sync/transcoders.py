# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Finished transcoders."""

from collections.abc import Iterator

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import pages, unary
from weft_client.sync.connection import Connection


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
