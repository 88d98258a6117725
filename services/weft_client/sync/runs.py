# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Training runs: started, followed, paused, evaluated."""

import uuid
from collections.abc import Iterator

from google.longrunning import operations_pb2

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import Patience, pages, stream, unary
from weft_client.sync.connection import Connection
from weft_common.errors import WeftError

FINAL_STATES = frozenset(
    (messages_pb2.RUN_STATE_SUCCEEDED, messages_pb2.RUN_STATE_FAILED, messages_pb2.RUN_STATE_CANCELLED)
)


class Runs:
    """Runs of the trainer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.TrainingServiceStub":
        return service_pb2_grpc.TrainingServiceStub(self._connection.channel("trainer"))

    def create(
        self, run_id: str, *, spec: messages_pb2.TrainingSpec, validate_only: bool = False, request_id: str = ""
    ) -> operations_pb2.Operation:
        """
        Start a run; follow it with `watch`, wait for it with `operations.wait`.

        Args:
            run_id: Lower-case letters, digits and `-`.
            spec: How to train; `weft_client.specs.training_spec` fills in what is left out.
            validate_only: Check everything and change nothing.
            request_id: A UUID of your own, to repeat this very request; one is made where there is none.
        """
        request = service_pb2.CreateRunRequest(
            run_id=run_id, spec=spec, validate_only=validate_only, request_id=request_id or str(uuid.uuid4())
        )
        return unary(self._stub.CreateRun, request)

    def get(self, name: str) -> messages_pb2.Run:
        """Describe one run."""
        return unary(self._stub.GetRun, service_pb2.GetRunRequest(name=full_name("runs", name)))

    def list(self) -> Iterator[messages_pb2.Run]:
        """All runs, newest first."""
        return pages(self._stub.ListRuns, service_pb2.ListRunsRequest(), lambda page: page.runs)

    def watch(self, name: str, *, after_step: int = 0) -> Iterator[service_pb2.WatchRunResponse]:
        """
        Metrics, evaluations and changes of state, until the run ends; a trainer that starts again is waited for.

        Args:
            name: `runs/{run}` or its id.
            after_step: Metrics after this step are sent; 0 sends all.
        """
        patience = Patience(None)
        while True:
            request = service_pb2.WatchRunRequest(name=full_name("runs", name), after_step=after_step)
            try:
                for event in stream(self._stub.WatchRun, request, service_pb2.WatchRunResponse):
                    patience.heard()
                    if event.HasField("metrics"):
                        after_step = max(after_step, event.metrics.step)
                    yield event
                    if event.run.state in FINAL_STATES:
                        return
                return
            except WeftError as error:
                patience.bear(error)

    def logs(self, name: str, *, attempt: int = 0, max_bytes: int = 0) -> service_pb2.GetRunLogsResponse:
        """
        The end of what the ranks of one attempt wrote.

        Args:
            name: `runs/{run}` or its id.
            attempt: Which start of the ranks; 0 means the last.
            max_bytes: Of each log; 0 means 64 KiB.
        """
        request = service_pb2.GetRunLogsRequest(name=full_name("runs", name), attempt=attempt, max_bytes=max_bytes)
        return unary(self._stub.GetRunLogs, request)

    def pause(self, name: str) -> messages_pb2.Run:
        """Save and stop."""
        return unary(self._stub.PauseRun, service_pb2.PauseRunRequest(name=full_name("runs", name)))

    def resume(self, name: str, *, feature_ranks: int = 0, data_ranks: int = 0) -> messages_pb2.Run:
        """Go on from the newest complete checkpoint; with other ranks where they are not 0."""
        request = service_pb2.ResumeRunRequest(
            name=full_name("runs", name), feature_ranks=feature_ranks, data_ranks=data_ranks
        )
        return unary(self._stub.ResumeRun, request)

    def cancel(self, name: str) -> messages_pb2.Run:
        """Stop for good."""
        return unary(self._stub.CancelRun, service_pb2.CancelRunRequest(name=full_name("runs", name)))

    def checkpoints(self, run: str) -> Iterator[messages_pb2.Checkpoint]:
        """A run's complete checkpoints, newest first."""
        request = service_pb2.ListCheckpointsRequest(run=full_name("runs", run))
        return pages(self._stub.ListCheckpoints, request, lambda page: page.checkpoints)

    def evaluate(
        self, checkpoint: str, *, num_tokens: int = 0, replacement_tokens: int = 0
    ) -> operations_pb2.Operation:
        """
        Evaluate a checkpoint on held-out data; `operations.wait` gives the Evaluation.

        Args:
            checkpoint: `runs/{run}/checkpoints/{step}`; a run means its newest.
            num_tokens: Held-out tokens to use; 0 means all.
            replacement_tokens: Held-out tokens to run the replacement model on; 0 leaves it out.
        """
        request = service_pb2.EvaluateCheckpointRequest(
            checkpoint=full_name("runs", checkpoint), num_tokens=num_tokens, replacement_tokens=replacement_tokens
        )
        return unary(self._stub.EvaluateCheckpoint, request)

    def export(self, checkpoint: str, *, transcoder_id: str) -> operations_pb2.Operation:
        """Write a checkpoint as a transcoder; `operations.wait` gives the Transcoder."""
        request = service_pb2.ExportTranscoderRequest(
            checkpoint=full_name("runs", checkpoint), transcoder_id=transcoder_id
        )
        return unary(self._stub.ExportTranscoder, request)
