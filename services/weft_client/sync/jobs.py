# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Long work on features: what there is, how far it is, and what came of each feature."""

import uuid
from collections.abc import Iterator, Sequence

from google.longrunning import operations_pb2

from weft.features.v1 import jobs_pb2, jobs_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import pages, stream, unary
from weft_client.sync.connection import Connection

_A_PAGE = 1_000


class Jobs:
    """What `labels.explain`, `labels.score` and `features.index` have started; served by the attribution service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "jobs_pb2_grpc.FeatureJobServiceStub":
        return jobs_pb2_grpc.FeatureJobServiceStub(self._connection.channel("attribution"))

    def interpreter(self) -> jobs_pb2.Interpreter:
        """Which language model is asked for labels, if any is."""
        return unary(self._stub.GetInterpreter, jobs_pb2.GetInterpreterRequest())

    def list(self, transcoder: str = "") -> Iterator[jobs_pb2.Interpretation]:
        """Explaining and scoring, newest first; of one transcoder, or of all."""
        request = jobs_pb2.ListInterpretationsRequest(
            parent=full_name("transcoders", transcoder) if transcoder else "", page_size=_A_PAGE
        )
        return pages(self._stub.ListInterpretations, request, lambda page: page.interpretations)

    def get(self, operation: str) -> jobs_pb2.Interpretation:
        """One of them; NotFoundError where there is none."""
        request = jobs_pb2.GetInterpretationRequest(operation=full_name("operations", operation))
        return unary(self._stub.GetInterpretation, request)

    def watch(self, operation: str) -> Iterator[jobs_pb2.Interpretation]:
        """One of them as it is at once, then whenever something has changed, last when it has ended."""
        request = jobs_pb2.WatchInterpretationRequest(operation=full_name("operations", operation))
        for each in stream(self._stub.WatchInterpretation, request, jobs_pb2.WatchInterpretationResponse):
            yield each.interpretation

    def results(
        self, operation: str, *, outcomes: Sequence[jobs_pb2.FeatureOutcome.ValueType] = (), page_size: int = _A_PAGE
    ) -> Iterator[jobs_pb2.InterpretedFeature]:
        """
        What came of its features so far, in the order in which they are gone through.

        Args:
            operation: Name or id of the operation.
            outcomes: Only features that this came of; none means all.
            page_size: Most features of one call.
        """
        request = jobs_pb2.ListInterpretedFeaturesRequest(
            operation=full_name("operations", operation), outcomes=outcomes, page_size=page_size
        )
        return pages(self._stub.ListInterpretedFeatures, request, lambda page: page.features)

    def resume(
        self, operation: str, *, max_calls: int = 0, max_tokens: int = 0, request_id: str = ""
    ) -> operations_pb2.Operation:
        """
        Ask for the same again, as new work; what was paid for is found again and costs nothing.

        Args:
            operation: Name or id of one that has ended.
            max_calls: Most calls of the new work; 0 means as many as before.
            max_tokens: Most tokens of the new work; 0 means as many as before.
            request_id: A UUID of your own, to repeat this very request; one is made where there is none.
        """
        request = jobs_pb2.ResumeInterpretationRequest(
            operation=full_name("operations", operation),
            max_calls=max_calls,
            max_tokens=max_tokens,
            request_id=request_id or str(uuid.uuid4()),
        )
        return unary(self._stub.ResumeInterpretation, request)

    def indexes(self, transcoder: str) -> Iterator[jobs_pb2.IndexJob]:
        """Work on a transcoder's indexes that are not whole, newest first; `features.index` goes on with one."""
        request = jobs_pb2.ListIndexJobsRequest(parent=full_name("transcoders", transcoder), page_size=_A_PAGE)
        return pages(self._stub.ListIndexJobs, request, lambda page: page.jobs)
