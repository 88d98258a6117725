# ruff: noqa: N802  the names of RPCs are given
"""Labels of one graph's features, kept in memory; nobody has said anything at first."""

from typing import Any

from weft.features.v1 import labels_pb2, service_pb2
from weft.features.v1.labels_pb2_grpc import LabelServiceServicer
from weft_common.errors import NotFoundError

__all__ = ["FakeGraphLabels", "FakeLabels"]


class FakeLabels(LabelServiceServicer):
    """The RPCs that read one label."""

    async def GetLabel(self, request: Any, context: Any) -> labels_pb2.Label:
        raise NotFoundError(f"{request.name} is not there")

    async def ListLabelRevisions(self, request: Any, context: Any) -> labels_pb2.ListLabelRevisionsResponse:
        return labels_pb2.ListLabelRevisionsResponse()


class FakeGraphLabels:
    """The RPC of FeatureService that lists a graph's features: none has a label."""

    async def ListGraphFeatures(self, request: Any, context: Any) -> service_pb2.ListGraphFeaturesResponse:
        return service_pb2.ListGraphFeaturesResponse()
