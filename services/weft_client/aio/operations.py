"""Long work: followed until it is done, across restarts of the service that does it."""

from collections.abc import AsyncIterator, Callable

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message

from weft_client.aio.calls import Patience, unary
from weft_client.aio.connection import AsyncConnection
from weft_client.names import full_name, operation_service
from weft_client.unpacking import unpack
from weft_common.errors import WeftError
from weft_common.status import error_from_status

POLL_S = 15.0


class AsyncOperations:
    """Operations of every service; an operation's name says which one keeps it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def _stub(self, service: str) -> operations_pb2_grpc.OperationsStub:
        return operations_pb2_grpc.OperationsStub(self._connection.channel(service))

    async def get(self, name: str) -> operations_pb2.Operation:
        """The operation as it stands."""
        name = full_name("operations", name)
        request = operations_pb2.GetOperationRequest(name=name)
        operation: operations_pb2.Operation = await unary(
            self._stub(operation_service(name)).GetOperation, request, timeout_s=POLL_S
        )
        return operation

    async def list(self, service: str) -> AsyncIterator[operations_pb2.Operation]:
        """All operations that one service keeps."""
        request = operations_pb2.ListOperationsRequest(name="operations")
        while True:
            page = await unary(self._stub(service).ListOperations, request)
            for operation in page.operations:
                yield operation
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def wait(
        self,
        operation: operations_pb2.Operation | str,
        *,
        timeout_s: float | None = None,
        progress: Callable[[Message], None] | None = None,
    ) -> Message:
        """
        Wait until the work is done, and give its result: Harvest, Run, Evaluation, Transcoder, TranscoderFiles, Graph,
        Faithfulness, GraphBatch, VerifyDatasetResponse or CollectGarbageResponse.

        Args:
            operation: What a `create` returned, or its name.
            timeout_s: How long to wait; None waits as long as the service can be reached.
            progress: Called with the metadata, whenever it has changed; each has a `progress`.

        Raises:
            WeftError: the work failed, and with which error.
            DeadlineExceededError: the time is over; the work goes on.
            UnavailableError: the service has not answered for two minutes.
        """
        name = operation if isinstance(operation, str) else operation.name
        patience = Patience(timeout_s)
        seen = b""
        while True:
            try:
                now = await self.get(name)
            except WeftError as error:
                await patience.bear(error)
                continue
            if now.metadata.value != seen:
                patience.heard()
                seen = now.metadata.value
                if progress is not None:
                    progress(unpack(now.metadata))
            if now.done:
                if now.HasField("error"):
                    raise error_from_status(now.error)
                return unpack(now.response)
            await patience.pause(f"{name} is under way", most_s=0.5)

    async def cancel(self, name: str) -> None:
        """Ask for the work to stop; what is committed stays."""
        name = full_name("operations", name)
        request = operations_pb2.CancelOperationRequest(name=name)
        await unary(self._stub(operation_service(name)).CancelOperation, request)
