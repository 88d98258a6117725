"""weft.training.v1.TrainingService: from messages to the core and back."""

from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime
from typing import TypeVar

import grpc.aio
from google.longrunning import operations_pb2

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.deadlines import remaining_s
from weft_common.errors import InvalidArgumentError
from weft_common.operations import OperationManager
from weft_common.pages import newest_first, paginate
from weft_common.resource_names import parse_name
from weft_trainer import converting
from weft_trainer.core.commands import RunCommands
from weft_trainer.core.format_jobs import FormatJobs
from weft_trainer.core.jobs import CheckpointJobs
from weft_trainer.core.logs import RunLogs
from weft_trainer.core.records import RunRecord
from weft_trainer.core.runs import RunRepository
from weft_trainer.core.transcoder_transfer import TranscoderTransfer
from weft_trainer.core.transcoders import Transcoders
from weft_trainer.core.watch import Evaluated, Watcher
from weft_trainer.operations import (
    CONVERT,
    EVALUATE,
    EXPORT,
    IMPORT,
    conversion_operation,
    evaluation_operation,
    export_operation,
    import_operation,
)

__all__ = ["TrainingServicer"]

Context = grpc.aio.ServicerContext[object, object]
T = TypeVar("T")

_PAGE_SIZE = 100
_PAUSE_WAIT_S = 60.0
_PAUSE_MARGIN_S = 0.5


class TrainingServicer(service_pb2_grpc.TrainingServiceServicer):
    """Answers people and programs."""

    def __init__(
        self,
        runs: RunRepository,
        commands: RunCommands,
        watcher: Watcher,
        jobs: CheckpointJobs,
        logs: RunLogs,
        transcoders: Transcoders,
        formats: FormatJobs,
        transfer: TranscoderTransfer,
        operations: OperationManager,
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._watcher = watcher
        self._jobs = jobs
        self._logs = logs
        self._transcoders = transcoders
        self._formats = formats
        self._transfer = transfer
        self._operations = operations

    async def CreateRun(self, request: service_pb2.CreateRunRequest, context: Context) -> operations_pb2.Operation:
        record = await self._commands.create(
            request.run_id,
            converting.spec_from_proto(request.spec),
            request.request_id,
            validate_only=request.validate_only,
        )
        if record.operation:
            return await self._operations.get(record.operation)
        operation = operations_pb2.Operation(done=True)
        operation.metadata.Pack(converting.metadata_to_proto(record, stage="validated"))
        operation.response.Pack(converting.run_to_proto(record))
        return operation

    async def GetRun(self, request: service_pb2.GetRunRequest, context: Context) -> messages_pb2.Run:
        return converting.run_to_proto(await self._runs.get(parse_name(request.name, "runs")))

    async def ListRuns(self, request: service_pb2.ListRunsRequest, context: Context) -> service_pb2.ListRunsResponse:
        records = await self._runs.all()
        page, token = _newest_first(
            records, request.page_size, request.page_token, lambda record: (record.create_time, record.run)
        )
        return service_pb2.ListRunsResponse(runs=map(converting.run_to_proto, page), next_page_token=token)

    async def WatchRun(
        self, request: service_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[service_pb2.WatchRunResponse]:
        run = parse_name(request.name, "runs")
        if request.after_step < 0:
            raise InvalidArgumentError(
                f"after_step is {request.after_step}: give 0 for everything, or the last step that you have.",
                field="after_step",
            )
        async for news in self._watcher.watch(run, request.after_step):
            if isinstance(news, RunRecord):
                yield service_pb2.WatchRunResponse(run=converting.run_to_proto(news))
            elif isinstance(news, Evaluated):
                yield service_pb2.WatchRunResponse(evaluation=converting.evaluation_to_proto(news))
            else:
                yield service_pb2.WatchRunResponse(metrics=converting.metrics_to_proto(news))

    async def PauseRun(self, request: service_pb2.PauseRunRequest, context: Context) -> messages_pb2.Run:
        left = remaining_s()
        wait_s = _PAUSE_WAIT_S if left is None else min(_PAUSE_WAIT_S, max(0.0, left - _PAUSE_MARGIN_S))
        return converting.run_to_proto(await self._commands.pause(parse_name(request.name, "runs"), wait_s))

    async def ResumeRun(self, request: service_pb2.ResumeRunRequest, context: Context) -> messages_pb2.Run:
        ranks = {"feature_ranks": request.feature_ranks, "data_ranks": request.data_ranks}
        return converting.run_to_proto(await self._commands.resume(parse_name(request.name, "runs"), ranks))

    async def CancelRun(self, request: service_pb2.CancelRunRequest, context: Context) -> messages_pb2.Run:
        return converting.run_to_proto(await self._commands.cancel(parse_name(request.name, "runs")))

    async def GetRunLogs(
        self, request: service_pb2.GetRunLogsRequest, context: Context
    ) -> service_pb2.GetRunLogsResponse:
        run = parse_name(request.name, "runs")
        attempt, logs = await self._logs.get(run, request.attempt, request.max_bytes)
        return converting.logs_to_proto(attempt, logs)

    async def ListCheckpoints(
        self, request: service_pb2.ListCheckpointsRequest, context: Context
    ) -> service_pb2.ListCheckpointsResponse:
        run = parse_name(request.run, "runs", field="run")
        await self._runs.get(run)
        page, token = paginate(
            await self._runs.checkpoints(run),
            request.page_size,
            request.page_token,
            lambda facts: f"{10**18 - facts.step:019d}",
            default_size=_PAGE_SIZE,
        )
        return service_pb2.ListCheckpointsResponse(
            checkpoints=[converting.checkpoint_to_proto(run, facts) for facts in page], next_page_token=token
        )

    async def EvaluateCheckpoint(
        self, request: service_pb2.EvaluateCheckpointRequest, context: Context
    ) -> operations_pb2.Operation:
        if request.num_tokens < 0:
            raise InvalidArgumentError(
                f"num_tokens is {request.num_tokens}: give 0 for all held-out tokens, or more.", field="num_tokens"
            )
        if request.replacement_tokens < 0:
            raise InvalidArgumentError(
                f"replacement_tokens is {request.replacement_tokens}: give 0 to leave the replacement model out, or "
                "more.",
                field="replacement_tokens",
            )
        found = await self._jobs.find(request.checkpoint)
        if request.replacement_tokens:
            self._jobs.check_replacement(found.run)
        # What "newest" meant is settled now, not whenever the work starts.
        settled = service_pb2.EvaluateCheckpointRequest(
            checkpoint=f"runs/{found.run}/checkpoints/{found.step}",
            num_tokens=request.num_tokens,
            replacement_tokens=request.replacement_tokens,
        )
        metadata = converting.metadata_to_proto(await self._runs.get(found.run), stage="evaluating")
        return await self._operations.start(EVALUATE, evaluation_operation(), settled, metadata)

    async def ExportTranscoder(
        self, request: service_pb2.ExportTranscoderRequest, context: Context
    ) -> operations_pb2.Operation:
        await self._jobs.check_export(request.transcoder_id)
        found = await self._jobs.find(request.checkpoint)
        settled = service_pb2.ExportTranscoderRequest(
            checkpoint=f"runs/{found.run}/checkpoints/{found.step}", transcoder_id=request.transcoder_id
        )
        metadata = converting.metadata_to_proto(await self._runs.get(found.run), stage="exporting")
        return await self._operations.start(EXPORT, export_operation(), settled, metadata)

    async def ImportTranscoder(
        self, request: service_pb2.ImportTranscoderRequest, context: Context
    ) -> messages_pb2.Transcoder:
        return converting.transcoder_to_proto(
            await self._transcoders.take_over(
                request.transcoder_id, request.prefix, request.model, request.model_revision
            )
        )

    async def UploadTranscoderFile(
        self, request_iterator: AsyncIterator[service_pb2.UploadTranscoderFileRequest], context: Context
    ) -> service_pb2.UploadTranscoderFileResponse:
        first = await anext(aiter(request_iterator), service_pb2.UploadTranscoderFileRequest())

        async def pieces() -> AsyncIterator[bytes]:
            yield first.data
            async for request in request_iterator:
                if request.transcoder_id not in ("", first.transcoder_id) or request.file not in ("", first.file):
                    raise InvalidArgumentError(
                        "transcoder_id or file changes within one upload: send one file a call, and name it in the "
                        "first message.",
                        field="file",
                    )
                yield request.data

        prefix, size_bytes = await self._transfer.upload(
            first.transcoder_id, first.file, pieces(), upload=first.upload, clear=first.clear
        )
        return service_pb2.UploadTranscoderFileResponse(prefix=prefix, size_bytes=size_bytes)

    async def ConvertFiles(
        self, request: service_pb2.ConvertFilesRequest, context: Context
    ) -> operations_pb2.Operation:
        settled = service_pb2.ConvertFilesRequest()
        settled.CopyFrom(request)
        settled.format = await self._formats.check_files(converting.foreign_files_from_proto(request))
        metadata = converting.transcoder_metadata(request.transcoder_id, "converting")
        return await self._operations.start(IMPORT, import_operation(), settled, metadata)

    async def ConvertTranscoder(
        self, request: service_pb2.ConvertTranscoderRequest, context: Context
    ) -> operations_pb2.Operation:
        transcoder = parse_name(request.name, "transcoders")
        await self._formats.check_layout(transcoder, request.format)
        metadata = converting.transcoder_metadata(transcoder, "converting")
        return await self._operations.start(CONVERT, conversion_operation(), request, metadata)

    async def ReadTranscoderFile(
        self, request: service_pb2.ReadTranscoderFileRequest, context: Context
    ) -> AsyncIterator[service_pb2.ReadTranscoderFileResponse]:
        transcoder = parse_name(request.name, "transcoders")
        async for data in self._transfer.read(transcoder, request.format, request.file):
            yield service_pb2.ReadTranscoderFileResponse(data=data)

    async def GetTranscoder(
        self, request: service_pb2.GetTranscoderRequest, context: Context
    ) -> messages_pb2.Transcoder:
        return converting.transcoder_to_proto(await self._transcoders.get(parse_name(request.name, "transcoders")))

    async def ListTranscoders(
        self, request: service_pb2.ListTranscodersRequest, context: Context
    ) -> service_pb2.ListTranscodersResponse:
        page, token = _newest_first(
            await self._transcoders.all(),
            request.page_size,
            request.page_token,
            lambda manifest: (manifest.get("create_time", ""), manifest["name"]),
        )
        return service_pb2.ListTranscodersResponse(
            transcoders=map(converting.transcoder_to_proto, page), next_page_token=token
        )


def _newest_first(
    items: Iterable[T], page_size: int, page_token: str, key: Callable[[T], tuple[str, str]]
) -> tuple[list[T], str]:
    """Cut a page, newest first; `key` gives a time and a name."""

    def descending(item: T) -> str:
        time, name = key(item)
        return newest_first(datetime.fromisoformat(time).timestamp() if time else 0.0, name)

    return paginate(items, page_size, page_token, descending, default_size=_PAGE_SIZE)
