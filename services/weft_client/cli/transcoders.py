"""`weft transcoders`."""

from typing import Annotated

import typer

from weft.training.v1 import messages_pb2
from weft_client.cli.output import print_list, print_one, size, time
from weft_client.cli.session import JsonFlag, NoWait, connected
from weft_client.cli.waiting import print_result, print_started, wait
from weft_client.names import short_id

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
    prefix: Annotated[str, typer.Option(help="Key prefix of its files in the bucket.")],
    model: Annotated[str, typer.Option(help="Id of the model that it was made for.")],
    as_json: JsonFlag = False,
) -> None:
    """Take over files in circuit-tracer's layout that lie in the bucket."""
    with connected() as client:
        revision = client.models.get(model).revision
        found = client.transcoders.import_files(transcoder, prefix=prefix, model=model, model_revision=revision)
    print_result(found, f"{found.name} is ready", as_json=as_json)
