"""The long work of the trainer, as operations that survive a restart."""

import uuid

from google.protobuf.message import Message

from weft.training.v1 import messages_pb2, service_pb2
from weft_common.errors import CancelledError, FailedPreconditionError, NotFoundError, WeftError
from weft_common.operations import OperationContext
from weft_trainer import converting
from weft_trainer.core.commands import operation_id
from weft_trainer.core.format_jobs import FormatJobs
from weft_trainer.core.jobs import CheckpointJobs, CheckpointRef, parse_checkpoint
from weft_trainer.core.ports import DatasetCatalog
from weft_trainer.core.records import RunRecord, RunState
from weft_trainer.core.runs import RunRepository
from weft_trainer.core.supervisor import RunSupervisor

__all__ = [
    "CONVERT",
    "EVALUATE",
    "EXPORT",
    "IMPORT",
    "TRAIN",
    "Handlers",
    "conversion_operation",
    "evaluation_operation",
    "export_operation",
    "import_operation",
]

TRAIN = "train"
EVALUATE = "evaluate"
EXPORT = "export"
IMPORT = "import"
CONVERT = "convert"


def evaluation_operation() -> str:
    """Return a new id."""
    return f"evaluate-{uuid.uuid4().hex}"


def export_operation() -> str:
    """Return a new id."""
    return f"export-{uuid.uuid4().hex}"


def import_operation() -> str:
    """Return a new id."""
    return f"import-{uuid.uuid4().hex}"


def conversion_operation() -> str:
    """Return a new id."""
    return f"convert-{uuid.uuid4().hex}"


class Handlers:
    """
    What does the work.

    Args:
        runs: The runs of the bucket.
        supervisor: Keeps ranks going.
        jobs: Evaluates and exports.
        formats: Converts between layouts.
        catalog: Holds the datasets that are read.
    """

    def __init__(
        self,
        runs: RunRepository,
        supervisor: RunSupervisor,
        jobs: CheckpointJobs,
        formats: FormatJobs,
        catalog: DatasetCatalog,
    ) -> None:
        self._runs = runs
        self._supervisor = supervisor
        self._jobs = jobs
        self._formats = formats
        self._catalog = catalog

    async def train(self, context: OperationContext) -> Message:
        """Keep a run going until it ends."""
        request = context.request
        assert isinstance(request, service_pb2.GetRunRequest)
        run = request.name.removeprefix("runs/")

        async def report(record: RunRecord) -> None:
            await context.report(converting.metadata_to_proto(record))

        record = await self._supervisor.supervise(run, report)
        await report(record)
        if record.state is RunState.FAILED:
            raise FailedPreconditionError(f"{record.name} failed: {record.error_message}")
        if record.state is RunState.CANCELLED:
            raise CancelledError(f"{record.name} was cancelled.")
        return converting.run_to_proto(record)

    async def give_up(self, context: OperationContext, error: WeftError) -> None:
        """End a run whose operation has failed for good or was cancelled: nobody would go on with it."""
        request = context.request
        assert isinstance(request, service_pb2.GetRunRequest)
        run = request.name.removeprefix("runs/")
        try:
            record = await self._runs.get(run)
        except NotFoundError:
            return
        # A failed run that was resumed since has another operation.
        if record.state.is_final or context.operation_id != operation_id(run, record.operation_count):
            return
        if isinstance(error, CancelledError):
            await self._supervisor.end(run, RunState.CANCELLED, "its operation was cancelled")
        else:
            await self._supervisor.end(run, RunState.FAILED, "it could not be supervised", error.message)

    async def evaluate(self, context: OperationContext) -> Message:
        """Evaluate a checkpoint."""
        request = context.request
        assert isinstance(request, service_pb2.EvaluateCheckpointRequest)
        checkpoint = _checkpoint(request.checkpoint)
        # The run may have ended, and with it its own hold.
        await self._catalog.hold((await self._runs.get(checkpoint.run)).spec["dataset"], context.name)
        found = await self._jobs.evaluate(checkpoint, request.num_tokens, request.replacement_tokens)
        return converting.evaluation_to_proto(found)

    async def export(self, context: OperationContext) -> Message:
        """Export a checkpoint."""
        request = context.request
        assert isinstance(request, service_pb2.ExportTranscoderRequest)
        manifest = await self._jobs.export(_checkpoint(request.checkpoint), request.transcoder_id)
        transcoder: messages_pb2.Transcoder = converting.transcoder_to_proto(
            {**manifest, "name": f"transcoders/{request.transcoder_id}"}
        )
        return transcoder

    async def take_in(self, context: OperationContext) -> Message:
        """Make a transcoder of files in another layout."""
        request = context.request
        assert isinstance(request, service_pb2.ConvertFilesRequest)
        manifest = await self._formats.take_in(converting.foreign_files_from_proto(request))
        return converting.transcoder_to_proto({**manifest, "name": f"transcoders/{request.transcoder_id}"})

    async def write_out(self, context: OperationContext) -> Message:
        """Write a transcoder in another layout."""
        request = context.request
        assert isinstance(request, service_pb2.ConvertTranscoderRequest)
        document = await self._formats.write(request.name.removeprefix("transcoders/"), request.format)
        return converting.transcoder_files_to_proto(document)


def _checkpoint(name: str) -> CheckpointRef:
    run, step = parse_checkpoint(name)
    assert step is not None, "requests of operations name their step"
    return CheckpointRef(run, step)
