# ruff: noqa: N802 (RPCs are named as in the proto)
"""The RPCs of FeatureService that ask a language model."""

import asyncio
import hashlib
import time
import uuid

import grpc.aio
from google.longrunning import operations_pb2

from weft.features.v1 import interpretation_pb2, service_pb2_grpc
from weft_attribution import converting_interpretation as converting
from weft_attribution.core.interpretation.budget import Spend
from weft_attribution.interpretation_requests import Asked
from weft_attribution.interpretation_work import EXPLAIN, SCORE, InterpretationWork
from weft_common.operations import OperationManager

__all__ = ["InterpretationRpcs"]

Context = grpc.aio.ServicerContext[object, object]


class InterpretationRpcs(service_pb2_grpc.FeatureServiceServicer):
    """Starts interpretation; it is done by `interpretation`, and kept in `work`."""

    interpretation: InterpretationWork
    work: OperationManager

    async def ExplainFeatures(
        self, request: interpretation_pb2.ExplainFeaturesRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self.start(EXPLAIN, request)

    async def ScoreFeatures(
        self, request: interpretation_pb2.ScoreFeaturesRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self.start(SCORE, request)

    async def start(self, kind: str, request: Asked) -> operations_pb2.Operation:
        """Check a request and have it done."""
        plan = await asyncio.to_thread(self.interpretation.check, request)
        # Without an id of its own, every request is another one.
        key = request.request_id or uuid.uuid4().hex
        digest = hashlib.sha256(f"{kind} {request.parent} {key}".encode()).hexdigest()
        operation_id = f"{kind}.{digest[:24]}"
        if request.validate_only:
            return operations_pb2.Operation(name=self.work.name(operation_id))
        plan = await asyncio.to_thread(self.interpretation.keep, request, operation_id, plan)
        metadata = converting.metadata_to_proto(request.parent, "waiting", time.time(), 0, len(plan.places), Spend())
        return await self.work.start(kind, operation_id, request, metadata)
