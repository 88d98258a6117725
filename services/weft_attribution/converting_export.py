"""Between protobuf messages and exports of features."""

import time
from collections.abc import Mapping
from typing import Any

from weft.common.v1 import operation_pb2
from weft.features.v1 import export_pb2
from weft_attribution.converting_features import index_name
from weft_attribution.core.feature_export.settings import DEFAULT_LOGITS, ExportLayout, ExportRequest
from weft_attribution.timestamps import timestamp
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id, parse_child_name, parse_name

__all__ = ["export_name", "export_to_proto", "metadata_to_proto", "request_from_proto", "request_to_proto"]

_LAYOUTS = {
    export_pb2.EXPORT_FORMAT_SAE_DASHBOARD: ExportLayout.SAE_DASHBOARD,
    export_pb2.EXPORT_FORMAT_CIRCUIT_TRACER: ExportLayout.CIRCUIT_TRACER,
}
_FORMATS = {layout: name for name, layout in _LAYOUTS.items()}


def request_from_proto(request: export_pb2.ExportFeaturesRequest) -> ExportRequest:
    """What is asked for, with the defaults filled in that need no look at the bucket. InvalidArgumentError."""
    transcoder = parse_name(request.transcoder, "transcoders", field="transcoder")
    if request.format not in _LAYOUTS:
        raise InvalidArgumentError(
            f"format is {request.format}; give one of {', '.join(map(export_pb2.ExportFormat.Name, _LAYOUTS))}",
            field="format",
        )
    index_id = ""
    if request.index:
        owner, index_id = parse_child_name(request.index, "transcoders", "indexes", field="index")
        if owner != transcoder:
            raise InvalidArgumentError(
                f"index is {request.index[:200]}, of another transcoder than {request.transcoder}", field="index"
            )
    return ExportRequest(
        transcoder=transcoder,
        export_id=check_id(request.export_id, field="export_id"),
        layout=_LAYOUTS[request.format],
        index_id=index_id,
        layers=tuple(sorted(set(request.layers))),
        model_name=request.model_name,
        source_set=request.source_set or transcoder.replace(".", "-"),
        num_logits=request.num_logits or DEFAULT_LOGITS,
    )


def request_to_proto(request: ExportRequest) -> export_pb2.ExportFeaturesRequest:
    """The same with everything written out, so that equal questions are equal messages."""
    return export_pb2.ExportFeaturesRequest(
        transcoder=f"transcoders/{request.transcoder}",
        export_id=request.export_id,
        format=_FORMATS[request.layout],
        index=index_name(request.transcoder, request.index_id),
        layers=request.layers,
        model_name=request.model_name,
        source_set=request.source_set,
        num_logits=request.num_logits,
    )


def export_to_proto(manifest: Mapping[str, Any]) -> export_pb2.FeatureExport:
    """A whole export."""
    request = ExportRequest.from_json(manifest["request"])
    return export_pb2.FeatureExport(
        name=export_name(request.transcoder, request.export_id),
        format=_FORMATS[request.layout],
        index=index_name(request.transcoder, request.index_id),
        layers=request.layers,
        model_name=request.model_name,
        source_set=request.source_set,
        num_logits=request.num_logits,
        num_features=manifest["num_features"],
        create_time=timestamp(manifest["create_s"]),
        size_bytes=manifest["size_bytes"],
        num_files=manifest["num_files"],
    )


def export_name(transcoder: str, export_id: str) -> str:
    """
    Name of an export.

    >>> export_name("t", "e1")
    'transcoders/t/exports/e1'
    """
    return f"transcoders/{transcoder}/exports/{export_id}"


def metadata_to_proto(
    request: ExportRequest, create_s: float, done: int, total: int
) -> export_pb2.FeatureExportMetadata:
    """How far an export is."""
    return export_pb2.FeatureExportMetadata(
        export=export_name(request.transcoder, request.export_id),
        progress=operation_pb2.Progress(
            stage="exporting",
            completed=done,
            total=total,
            unit="features",
            create_time=timestamp(create_s),
            update_time=timestamp(time.time()),
        ),
    )
