# ruff: noqa: N802 (RPCs are named as in the proto)
"""The RPCs of AttributionService that change the model, and the long work behind them."""

import asyncio
import hashlib
import time
from dataclasses import dataclass

import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft.attribution.v1 import messages_pb2, service_pb2_grpc, steering_pb2
from weft.common.v1 import operation_pb2
from weft_attribution import converting_steering as converting
from weft_attribution.core.faithfulness import FaithfulnessSweep
from weft_attribution.core.steering import Steers
from weft_attribution.naming import graph_id_of
from weft_attribution.timestamps import timestamp
from weft_common.operations import OperationContext, OperationKind, OperationManager

__all__ = ["FAITHFULNESS", "FaithfulnessWork", "SteeringDomain", "SteeringRpcs"]

Context = grpc.aio.ServicerContext[object, object]
FAITHFULNESS = "faithfulness"
_DEFAULT_NODES = 64
_REPORT_EVERY_S = 0.3


@dataclass(frozen=True)
class SteeringDomain:
    """What answers."""

    steers: Steers
    sweep: FaithfulnessSweep


def _metadata(name: str, create_s: float, done: int, total: int) -> messages_pb2.GraphMetadata:
    return messages_pb2.GraphMetadata(
        graph=name,
        progress=operation_pb2.Progress(
            stage="ablate",
            completed=done,
            total=total,
            unit="nodes",
            create_time=timestamp(create_s),
            update_time=timestamp(time.time()),
        ),
    )


class FaithfulnessWork:
    """
    The long work behind MeasureFaithfulness.

    Args:
        sweep: The domain.
    """

    def __init__(self, sweep: FaithfulnessSweep) -> None:
        self._sweep = sweep

    def kind(self) -> OperationKind:
        """One at a time in a process: each ablation is a few passes of the base model."""
        return OperationKind(self._measure, shared=False, max_running=1)

    async def _measure(self, context: OperationContext) -> Message:
        request = context.request
        assert isinstance(request, steering_pb2.MeasureFaithfulnessRequest)
        begun, latest = time.time(), (0, request.num_nodes)

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal latest
            latest = done, total

        graph_id = graph_id_of(request.name)
        task = asyncio.ensure_future(self._sweep.measure(graph_id, request.num_nodes, progress))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REPORT_EVERY_S)
                await context.report(_metadata(request.name, begun, *latest))
        finally:
            task.cancel()
        return converting.faithfulness_to_proto(task.result(), with_nodes=True)


class SteeringRpcs(service_pb2_grpc.AttributionServiceServicer):
    """Changes features in the model, by the domain that is put into `steering`; long work goes to `work`."""

    steering: SteeringDomain
    work: OperationManager

    async def Steer(self, request: steering_pb2.SteerRequest, context: Context) -> steering_pb2.SteerResponse:
        plan = converting.plan_from_proto(request)
        return converting.steering_to_proto(await self.steering.steers.steer(graph_id_of(request.name), plan))

    async def MeasureFaithfulness(
        self, request: steering_pb2.MeasureFaithfulnessRequest, context: Context
    ) -> operations_pb2.Operation:
        graph_id, num_nodes = graph_id_of(request.name), request.num_nodes or _DEFAULT_NODES
        create_s = await self.steering.sweep.check(graph_id, num_nodes)
        # The same question on the same graph is the same work; a graph made anew under the id is another one.
        key = f"{graph_id} {create_s} {num_nodes}"
        operation_id = f"faithfulness.{hashlib.sha256(key.encode()).hexdigest()[:24]}"
        asked = steering_pb2.MeasureFaithfulnessRequest(name=request.name, num_nodes=num_nodes)
        return await self.work.start(
            FAITHFULNESS, operation_id, asked, _metadata(request.name, time.time(), 0, num_nodes)
        )
