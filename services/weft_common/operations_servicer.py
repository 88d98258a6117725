# ruff: noqa: N802 (RPCs are named as in the proto)
"""The RPCs of google.longrunning.Operations over an OperationManager."""

from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from weft_common.deadlines import remaining_s
from weft_common.errors import InvalidArgumentError
from weft_common.operations import OperationManager
from weft_common.server import Registration

__all__ = ["OperationsServicer", "operations_registration"]

_DEFAULT_WAIT_S = 60.0
# Left of a caller's deadline for the answer's way back.
_MARGIN_S = 0.5


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc] # has no types
    """Get, List, Wait, Cancel and Delete."""

    def __init__(self, manager: OperationManager) -> None:
        self._manager = manager

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> operations_pb2.Operation:
        return await self._manager.get(request.name)

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> operations_pb2.ListOperationsResponse:
        if request.filter:
            raise InvalidArgumentError("operations cannot be filtered; leave filter empty", field="filter")
        if request.name not in ("", "operations"):
            raise InvalidArgumentError(
                f"name is {request.name!r:.120}; all operations of a service are listed, so leave it empty",
                field="name",
            )
        operations, next_token = await self._manager.list(request.page_size, request.page_token)
        return operations_pb2.ListOperationsResponse(operations=operations, next_page_token=next_token)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> operations_pb2.Operation:
        timeout_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else _DEFAULT_WAIT_S
        if timeout_s < 0:
            raise InvalidArgumentError(f"timeout is {timeout_s:g} s; give 0 s or more", field="timeout")
        left = remaining_s()
        if left is not None:
            timeout_s = min(timeout_s, max(0.0, left - _MARGIN_S))
        return await self._manager.wait(request.name, timeout_s)

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> empty_pb2.Empty:
        await self._manager.cancel(request.name)
        return empty_pb2.Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> empty_pb2.Empty:
        await self._manager.delete(request.name)
        return empty_pb2.Empty()


def operations_registration(manager: OperationManager) -> Registration:
    """Return what a server needs to answer for its long work."""
    servicer = OperationsServicer(manager)
    return Registration(
        operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name,
        lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(servicer, server),
    )
