"""Between the messages of weft.training.v1 and what the core has; nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from weft.training.v1 import messages_pb2, service_pb2
from weft_clt.formats.opening import AUTO
from weft_trainer.core.format_jobs import ForeignFiles
from weft_trainer.core.ports import RankLog
from weft_trainer.core.records import Epoch, RunRecord
from weft_trainer.core.reports import Directive, RankReport
from weft_trainer.core.runs import CheckpointFacts

__all__ = [
    "checkpoint_to_proto",
    "directive_to_proto",
    "epoch_to_proto",
    "evaluation_to_proto",
    "fields_of",
    "foreign_files_from_proto",
    "logs_to_proto",
    "metadata_to_proto",
    "metrics_to_proto",
    "report_from_proto",
    "run_to_proto",
    "spec_from_proto",
    "timestamp",
    "transcoder_files_to_proto",
    "transcoder_metadata",
    "transcoder_to_proto",
]

M = TypeVar("M", bound=Message)


def timestamp(text: str) -> Timestamp:
    """Read RFC 3339."""
    moment = Timestamp()
    if text:
        moment.FromDatetime(datetime.fromisoformat(text))
    return moment


def fields_of(message: Message) -> dict[str, Any]:
    """Return the plain fields of a message as a document, by name; numbers that JSON does not have are None."""
    fields = (field for field in message.DESCRIPTOR.fields if field.message_type is None)
    return {field.name: _plain(getattr(message, field.name)) for field in fields}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int) else [_plain(item) for item in value]


def _filled(message: M, document: Mapping[str, Any]) -> M:
    """Fill the plain fields of a message from a document; what it does not know is left out."""
    for field in message.DESCRIPTOR.fields:
        if field.name not in document or field.message_type is not None:
            continue
        value = document[field.name]
        if field.is_repeated:
            getattr(message, field.name).extend(_number(item, field) for item in value)
        else:
            setattr(message, field.name, _number(value, field))
    return message


def _number(value: Any, field: Any) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return math.nan if value is None else float(value)
    return value if isinstance(value, str) else int(value)


def spec_from_proto(spec: Message) -> dict[str, Any]:
    """Return the JSON form of a spec, as `weft_clt.config` reads it: every field, enums by their names."""
    document: dict[str, Any] = {}
    for field in spec.DESCRIPTOR.fields:
        value = getattr(spec, field.name)
        if field.message_type is not None:
            document[field.name] = [spec_from_proto(piece) for piece in value]
        elif field.enum_type is not None:
            document[field.name] = _enum_name(field.enum_type, value)
        else:
            document[field.name] = _plain(value)
    return document


def _enum_name(enum: Any, number: int) -> str:
    """Name a value; what this version has no name for is refused later, like the one that means "not set"."""
    known = enum.values_by_number
    # Not set, these have a default: a number without a name must not pass for it.
    unset = "" if enum.name in ("Scales", "Moments", "ParameterType") else str(known[0].name)
    return str(known[number].name) if number in known else unset


def _spec_to_proto(document: Mapping[str, Any]) -> messages_pb2.TrainingSpec:
    return _spec_filled(messages_pb2.TrainingSpec(), document)


def _spec_filled(message: M, document: Mapping[str, Any]) -> M:
    """Fill a message from its JSON form; a field that the document lacks, as an older run's does, stays unset."""
    for field in message.DESCRIPTOR.fields:
        if field.name not in document:
            continue
        value = document[field.name]
        if field.message_type is not None:
            for piece in value:
                _spec_filled(getattr(message, field.name).add(), piece)
        elif field.enum_type is not None:
            setattr(message, field.name, field.enum_type.values_by_name[value].number)
        else:
            setattr(message, field.name, _number(value, field))
    return message


def metrics_to_proto(document: Mapping[str, Any]) -> messages_pb2.Metrics:
    """Return a step's metrics."""
    return _filled(messages_pb2.Metrics(), document)


def evaluation_to_proto(document: Mapping[str, Any]) -> messages_pb2.Evaluation:
    """Return an evaluation, with the replacement model's scores where the document has them."""
    evaluation = _filled(messages_pb2.Evaluation(), document)
    scores = document.get("replacement")
    if scores:
        replacement = _filled(evaluation.replacement, scores)
        _filled(replacement.all, scores["all"])
        replacement.by_layer.extend(_filled(messages_pb2.ReplacementScore(), each) for each in scores["by_layer"])
    return evaluation


def run_to_proto(record: RunRecord) -> messages_pb2.Run:
    """Return a run."""
    return messages_pb2.Run(
        name=record.name,
        spec=_spec_to_proto(record.spec),
        state=messages_pb2.RunState.Value(f"RUN_STATE_{record.state}"),
        transitions=[
            messages_pb2.StateTransition(
                state=messages_pb2.RunState.Value(f"RUN_STATE_{entry.state}"),
                time=timestamp(entry.time),
                reason=entry.reason,
            )
            for entry in record.transitions
        ],
        step=record.step,
        attempt=record.attempt,
        metrics=metrics_to_proto(record.metrics) if record.metrics else None,
        evaluation=evaluation_to_proto(record.evaluation) if record.evaluation else None,
        create_time=timestamp(record.create_time),
        error_message=record.error_message,
        operation=record.operation,
        peak_memory_bytes=record.peak_memory_bytes,
        pending_reason=record.pending_reason,
        epochs=map(epoch_to_proto, record.epochs),
    )


def epoch_to_proto(epoch: Epoch) -> messages_pb2.Epoch:
    """Return what an epoch goes over."""
    fields = asdict(epoch)
    created = fields.pop("create_time")
    return messages_pb2.Epoch(**fields, dataset_create_time=timestamp(created) if created else None)


def logs_to_proto(attempt: int, logs: Sequence[RankLog]) -> service_pb2.GetRunLogsResponse:
    """Return the logs of an attempt."""
    found = [messages_pb2.RankLog(source=log.source, text=log.text) for log in logs]
    return service_pb2.GetRunLogsResponse(attempt=attempt, logs=found)


def metadata_to_proto(record: RunRecord, stage: str = "") -> messages_pb2.RunMetadata:
    """Return the metadata of an operation on a run."""
    metadata = messages_pb2.RunMetadata(run=record.name)
    if record.metrics:
        metadata.metrics.CopyFrom(metrics_to_proto(record.metrics))
    progress = metadata.progress
    progress.stage = stage or {"PENDING": "starting ranks", "RUNNING": "training"}.get(
        record.state, record.state.lower()
    )
    if not stage:
        progress.completed, progress.total, progress.unit = record.step, record.num_steps, "steps"
    progress.create_time.CopyFrom(timestamp(record.create_time))
    progress.update_time.GetCurrentTime()
    return metadata


def checkpoint_to_proto(run: str, facts: CheckpointFacts) -> messages_pb2.Checkpoint:
    """Return a checkpoint."""
    return messages_pb2.Checkpoint(
        name=f"runs/{run}/checkpoints/{facts.step}",
        step=facts.step,
        attempt=facts.attempt,
        size_bytes=facts.size_bytes,
        create_time=timestamp(facts.create_time),
        evaluation=evaluation_to_proto(facts.evaluation) if facts.evaluation else None,
    )


def transcoder_to_proto(manifest: Mapping[str, Any]) -> messages_pb2.Transcoder:
    """Return a transcoder."""
    transcoder = _filled(messages_pb2.Transcoder(), manifest)
    if manifest.get("evaluation"):
        transcoder.evaluation.CopyFrom(evaluation_to_proto(manifest["evaluation"]))
    transcoder.create_time.CopyFrom(timestamp(manifest.get("create_time", "")))
    transcoder.prefix = transcoder.prefix or f"{transcoder.name}/"
    return transcoder


def foreign_files_from_proto(request: service_pb2.ConvertFilesRequest) -> ForeignFiles:
    """Return what is to become a transcoder; no format means to go by the names."""
    return ForeignFiles(
        transcoder=request.transcoder_id,
        prefix=request.prefix,
        layout=request.format or AUTO,
        model=request.model,
        model_revision=request.model_revision,
        input_hook=request.input_hook,
    )


def transcoder_files_to_proto(document: Mapping[str, Any]) -> messages_pb2.TranscoderFiles:
    """Return the files of a transcoder in a layout."""
    return messages_pb2.TranscoderFiles(
        transcoder=document["transcoder"],
        format=document["format"],
        files=[messages_pb2.TranscoderFile(**entry) for entry in document["files"]],
    )


def transcoder_metadata(transcoder: str, stage: str) -> messages_pb2.TranscoderMetadata:
    """Return what an operation on a transcoder says of itself."""
    metadata = messages_pb2.TranscoderMetadata(transcoder=f"transcoders/{transcoder}")
    metadata.progress.stage = stage
    return metadata


def report_from_proto(run: str, request: service_pb2.ReportRequest) -> RankReport:
    """Return what a rank says."""
    return RankReport(
        run=run,
        attempt=request.attempt,
        rank=request.rank,
        metrics=[fields_of(metrics) for metrics in request.metrics],
        evaluation=fields_of(request.evaluation) if request.HasField("evaluation") else {},
        checkpoint_step=request.checkpoint_step,
        finished=request.finished,
        error_message=request.error_message[:4000],
        peak_memory_bytes=request.peak_memory_bytes,
        notice=_notice(request),
    )


def _notice(request: service_pb2.ReportRequest) -> str:
    """Say for the run's history what its ranks could not read; empty where nothing was damaged."""
    damaged = request.damaged_checkpoint
    if not damaged.step:
        return ""
    return (
        f"attempt {request.attempt} goes on from step {damaged.resumed_step}, as checkpoint {damaged.step} is damaged: "
        f"{damaged.reason[:1000]}"
    )


def directive_to_proto(directive: Directive) -> "service_pb2.Directive.ValueType":
    """Return what a rank is told."""
    return service_pb2.Directive.Value(f"DIRECTIVE_{directive.name}")
