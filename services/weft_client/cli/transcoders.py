"""`weft transcoders`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from weft.training.v1 import messages_pb2
from weft_client.cli.output import print_list, print_one, size, time
from weft_client.cli.session import JsonFlag, NoWait, connected
from weft_client.cli.waiting import print_result, print_started, wait
from weft_client.names import short_id
from weft_common.errors import InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="Finished transcoders, in circuit-tracer's layout.")


@app.command("list")
def list_transcoders(as_json: JsonFlag = False) -> None:
    """List transcoders, newest first."""
    with connected() as client:
        print_list(
            "transcoders",
            client.transcoders.list(),
            {
                "id": lambda each: short_id(each.name),
                "model": lambda each: short_id(each.model),
                "run": lambda each: short_id(each.run),
                "layers": lambda each: str(each.num_layers),
                "features": lambda each: str(each.num_features),
                "explained": lambda each: f"{each.evaluation.explained_variance:.3f}",
                "size": lambda each: size(each.size_bytes),
                "created": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


@app.command("get")
def get_transcoder(
    transcoder: Annotated[str, typer.Argument(help="Id of the transcoder.")], as_json: JsonFlag = False
) -> None:
    """Describe one transcoder."""
    with connected() as client:
        found = client.transcoders.get(transcoder)
    fields = [
        ("name", found.name),
        ("model", f"{found.model}, revision {found.model_revision}"),
        ("from", ", ".join(filter(None, (found.run, found.dataset)))),
        ("features", f"{found.num_features} in each of {found.num_layers} layers, {found.activation}"),
        ("hooks", f"reads {found.input_hook}, writes {found.output_hook}, d_model {found.d_model}"),
        ("explained variance", f"{found.evaluation.explained_variance:.3f}"),
        ("files", f"{found.prefix}, {size(found.size_bytes)}"),
        ("created", time(found.create_time)),
    ]
    print_one(found, fields, as_json=as_json)


@app.command("create")
def create_transcoder(
    transcoder: Annotated[str, typer.Argument(help="Id of the new transcoder.")],
    run: Annotated[str, typer.Option(help="Id of the run, or runs/{run}/checkpoints/{step}; a run means its newest.")],
    no_wait: NoWait = False,
    as_json: JsonFlag = False,
) -> None:
    """Export a run's checkpoint as a transcoder."""
    with connected() as client:
        operation = client.runs.export(run, transcoder_id=transcoder)
        if no_wait:
            print_started(operation, f"transcoders/{transcoder}", validated=False, as_json=as_json)
            return
        result = wait(client, operation, "exporting", quiet=as_json)
    assert isinstance(result, messages_pb2.Transcoder)
    line = f"{result.name} is ready; explain a prompt with `weft graphs create --transcoder {transcoder} --prompt ...`"
    print_result(result, line, as_json=as_json)


@app.command("import")
def import_transcoder(
    transcoder: Annotated[str, typer.Argument(help="Id of the new transcoder.")],
    model: Annotated[str, typer.Option(help="Id of the model that it was made for.")],
    folder: Annotated[Path | None, typer.Argument(help="Folder of its files on this machine.", exists=True)] = None,
    prefix: Annotated[str, typer.Option(help="Key prefix of its files, where they lie in the bucket already.")] = "",
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="circuit-tracer, clt-forge, llamascopium, saelens, gemmascope, or auto to go by the files' names. "
            "Without it, files in the bucket are taken over where they lie, as circuit-tracer's.",
        ),
    ] = "",
    input_hook: Annotated[
        str, typer.Option(help="What it reads, mlp_in or resid_mid, where that is not what the files say.")
    ] = "",
    no_wait: NoWait = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a transcoder of files in circuit-tracer's or another tool's layout."""
    if (folder is None) == (prefix == ""):
        raise InvalidArgumentError("give the folder of its files, or --prefix where they lie in the bucket already.")
    with connected() as client:
        revision = client.models.get(model).revision
        if folder is None and not layout and not input_hook:
            found = client.transcoders.import_files(transcoder, prefix=prefix, model=model, model_revision=revision)
            print_result(found, f"{found.name} is ready", as_json=as_json)
            return
        if folder is not None:
            prefix = client.transcoders.upload(transcoder, folder, progress=_told("sent", as_json=as_json))
        operation = client.transcoders.convert_files(
            transcoder,
            prefix=prefix,
            layout=layout or "auto",
            model=model,
            model_revision=revision,
            input_hook=input_hook,
        )
        if no_wait:
            print_started(operation, f"transcoders/{transcoder}", validated=False, as_json=as_json)
            return
        result = wait(client, operation, "converting", quiet=as_json)
    assert isinstance(result, messages_pb2.Transcoder)
    print_result(result, f"{result.name} is ready", as_json=as_json)


@app.command("export")
def export_transcoder(
    transcoder: Annotated[str, typer.Argument(help="Id of the transcoder.")],
    layout: Annotated[str, typer.Option("--format", help="circuit-tracer, clt-forge, llamascopium or saelens.")],
    out: Annotated[Path, typer.Option(help="Folder to write; made if missing.")],
    as_json: JsonFlag = False,
) -> None:
    """Write a transcoder in a layout that another tool reads."""
    with connected() as client:
        operation = client.transcoders.convert(transcoder, layout=layout)
        files = wait(client, operation, "converting", quiet=as_json)
        assert isinstance(files, messages_pb2.TranscoderFiles)
        out.mkdir(parents=True, exist_ok=True)
        client.transcoders.download(files, out, progress=_told("written", as_json=as_json))
    num_bytes = sum(file.size_bytes for file in files.files)
    line = f"{files.transcoder} is in {out} as {files.format}: {len(files.files)} files, {size(num_bytes)}"
    print_result(files, line, as_json=as_json)


def _told(what: str, *, as_json: bool) -> Callable[[str, int], None] | None:
    """Tell of each file on stderr, unless a program reads."""
    return None if as_json else lambda name, num_bytes: typer.echo(f"{what} {name}, {size(num_bytes)}", err=True)
