"""`weft features export` and its kin: what an index keeps of features, as files that other tools read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from weft.features.v1 import export_pb2
from weft_client.cli.output import print_json, print_list, size, stdout, time
from weft_client.cli.session import JsonFlag, NoWait, ValidateOnly, connected
from weft_client.cli.waiting import print_result, print_started, wait
from weft_client.names import short_id
from weft_client.sync.client import Client
from weft_common.errors import FailedPreconditionError

TranscoderArgument = Annotated[str, typer.Argument(help="Id of the transcoder.")]


class Layout(StrEnum):
    """Whose files."""

    SAE_DASHBOARD = "sae-dashboard"
    CIRCUIT_TRACER = "circuit-tracer"


_FORMATS = {
    Layout.SAE_DASHBOARD: export_pb2.EXPORT_FORMAT_SAE_DASHBOARD,
    Layout.CIRCUIT_TRACER: export_pb2.EXPORT_FORMAT_CIRCUIT_TRACER,
}
_LAYOUTS = {value: name.value for name, value in _FORMATS.items()}


def export_features(
    transcoder: TranscoderArgument,
    layout: Annotated[Layout, typer.Option("--format", help="Whose files.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; made if missing. Without it they stay there.")
    ] = None,
    export: Annotated[str, typer.Option("--id", help="Id of the export; default: format and index.")] = "",
    index: Annotated[str, typer.Option(help="Id of the index; default: the newest.")] = "",
    layer: Annotated[list[int] | None, typer.Option(help="Layer; may be repeated. Default: all.")] = None,
    model_name: Annotated[str, typer.Option(help="What the files call the model; default: its id.")] = "",
    source_set: Annotated[
        str, typer.Option(help="What the files call the features; default: the transcoder's id.")
    ] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Write features as files that another tool reads; the same command again goes on."""
    with connected() as client:
        index = index or _newest(client, transcoder)
        export = export or f"{layout.value}-{index}"
        operation = client.features.export(
            transcoder,
            export,
            layout=_FORMATS[layout],
            index=index,
            layers=layer or (),
            model_name=model_name,
            source_set=source_set,
            validate_only=validate_only,
        )
        if no_wait or validate_only:
            name = f"transcoders/{short_id(transcoder)}/exports/{export}"
            print_started(operation, name, validated=validate_only, as_json=as_json)
            return
        result = wait(client, operation, "exporting", quiet=as_json)
        assert isinstance(result, export_pb2.FeatureExport)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            client.features.download(result, out)
    where = f"is in {out}" if out is not None else "is ready"
    line = f"{result.name} {where}: {result.num_features} features, {result.num_files} files, {size(result.size_bytes)}"
    print_result(result, line, as_json=as_json)


def _newest(client: Client, transcoder: str) -> str:
    found = next(iter(client.features.indexes(transcoder)), None)
    if found is None:
        raise FailedPreconditionError(
            f"transcoders/{short_id(transcoder)} has no index of its features yet; make one with weft features index"
        )
    return short_id(found.name)


def list_exports(transcoder: TranscoderArgument, as_json: JsonFlag = False) -> None:
    """List the exports of a transcoder."""
    with connected() as client:
        print_list(
            "exports",
            client.features.exports(transcoder),
            {
                "id": lambda each: short_id(each.name),
                "format": lambda each: _LAYOUTS.get(each.format, ""),
                "index": lambda each: short_id(each.index),
                "features": lambda each: str(each.num_features),
                "size": lambda each: size(each.size_bytes),
                "created": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


def delete_export(
    transcoder: TranscoderArgument,
    export: Annotated[str, typer.Argument(help="Id of the export.")],
    as_json: JsonFlag = False,
) -> None:
    """Delete an export and its files."""
    with connected() as client:
        client.features.delete_export(transcoder, export)
    if as_json:
        print_json({"deleted": export})
    else:
        stdout().print(f"{export} is deleted")
