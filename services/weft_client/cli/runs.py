"""`weft runs`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from weft.training.v1 import messages_pb2, service_pb2
from weft_client.cli.evaluations import evaluation_table
from weft_client.cli.output import as_dict, print_json, print_list, print_one, size, stdout, time
from weft_client.cli.run_display import Board, run_fields, run_state
from weft_client.cli.session import JsonFlag, NoWait, ValidateOnly, connected
from weft_client.cli.waiting import print_started, wait
from weft_client.names import full_name, short_id
from weft_client.run_file import read_run_file
from weft_client.specs import recipe_spec, training_spec
from weft_common.errors import CancelledError, InternalError, InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="Training runs.")
RunArgument = Annotated[str, typer.Argument(help="Id of the run.")]
ACTIVATIONS = {
    name.removeprefix("ACTIVATION_").lower().replace("_", "-"): number
    for name, number in messages_pb2.Activation.items()
    if number != messages_pb2.ACTIVATION_UNSPECIFIED
}


@app.command("list")
def list_runs(as_json: JsonFlag = False) -> None:
    """List runs, newest first."""
    with connected() as client:
        print_list(
            "runs",
            client.runs.list(),
            {
                "id": lambda run: short_id(run.name),
                "state": run_state,
                "dataset": lambda run: short_id(run.spec.dataset),
                "step": lambda run: f"{run.step} of {run.spec.num_steps}",
                "loss": lambda run: f"{run.metrics.loss:.4f}",
                "explained": lambda run: f"{run.evaluation.explained_variance:.3f}",
                "created": lambda run: time(run.create_time),
            },
            as_json=as_json,
        )


@app.command("get")
def get_run(run: RunArgument, as_json: JsonFlag = False) -> None:
    """Describe one run."""
    with connected() as client:
        found = client.runs.get(run)
    print_one(found, run_fields(found), as_json=as_json)


@app.command("create")
def create_run(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Id of the new run; with --file it may stand in the file.")] = "",
    file: Annotated[Path | None, typer.Option("--file", "-f", help="YAML with run_id and the whole spec.")] = None,
    dataset: Annotated[str, typer.Option(help="Id of the dataset to train on, sealed unless told otherwise.")] = "",
    while_harvesting: Annotated[
        bool,
        typer.Option("--while-harvesting", help="Begin with what is harvested by now; each epoch takes what came."),
    ] = False,
    snapshot: Annotated[int, typer.Option(min=0, help="Begin with this snapshot, in place of a new one.")] = 0,
    num_features: Annotated[int, typer.Option(help="Features a layer, over all ranks.")] = 512,
    recipe: Annotated[str, typer.Option(help="A published recipe, `weft recipes`; what else is given wins.")] = "",
    activation: Annotated[str, typer.Option(help=f"{', '.join(ACTIVATIONS)}.")] = "top-k",
    top_k: Annotated[int, typer.Option(help="For those that count: features kept a token and layer.")] = 32,
    num_steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 60,
    step_tokens: Annotated[int, typer.Option(help="Tokens of one step, over all ranks.")] = 1_024,
    feature_ranks: Annotated[int, typer.Option(help="Ranks on the feature axis.")] = 1,
    data_ranks: Annotated[int, typer.Option(help="Ranks on the data axis.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 2e-3,
    sparsity_coeff: Annotated[float | None, typer.Option(help="For relu and jump-relu: final weight.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and data order.")] = 1,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a cross-layer transcoder, and show how it goes; Ctrl-C leaves it running."""
    if file is not None:
        _refuse_options(context)
        run, spec = _from_file(file, run)
    else:
        if not run or not dataset:
            raise InvalidArgumentError("give the id of the run and --dataset, or --file with both in it")
        given: dict[str, Any] = {
            "dataset": full_name("datasets", dataset),
            "num_features": num_features,
            "num_steps": num_steps,
            "step_tokens": step_tokens,
            "feature_ranks": feature_ranks,
            "data_ranks": data_ranks,
            "seed": seed,
            "take_snapshot": while_harvesting,
            "snapshot": snapshot,
        }
        if sparsity_coeff is not None:
            given["sparsity_coeff"] = sparsity_coeff
        if recipe:
            if _typed(context, "activation"):
                raise InvalidArgumentError("--activation and --recipe are both given; a recipe has its own, give one")
            given |= {name: context.params[name] for name in ("top_k", "learning_rate") if _typed(context, name)}
            spec = recipe_spec(recipe, **given)
        else:
            counted = activation.endswith("top-k")
            given |= {"activation": _activation(activation), "learning_rate": learning_rate}
            spec = training_spec(**given, **({"top_k": top_k} if counted else {}))
    with connected() as client:
        operation = client.runs.create(run, spec=spec, validate_only=validate_only)
    if no_wait or validate_only:
        print_started(operation, f"runs/{run}", validated=validate_only, as_json=as_json)
        return
    if not as_json:
        watch_run(run)
        return
    with connected() as client:
        print_json(as_dict(wait(client, operation, "training", quiet=True)))


def _activation(given: str) -> "messages_pb2.Activation.ValueType":
    if given not in ACTIVATIONS:
        raise InvalidArgumentError(
            f"--activation is {given!r}, expected {' or '.join(ACTIVATIONS)}", field="activation"
        )
    return ACTIVATIONS[given]


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given, and not left to its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_options(context: typer.Context) -> None:
    """With a file, the whole spec stands in it; an option that says something too is refused."""
    for name in context.params.keys() - {"run", "file", "no_wait", "validate_only", "as_json"}:
        if _typed(context, name):
            option = name.replace("_", "-")
            raise InvalidArgumentError(f"--{option} and --file are both given; write {name} into the file's spec")


def _from_file(path: Path, run: str) -> tuple[str, messages_pb2.TrainingSpec]:
    found = read_run_file(path)
    if run and found.run_id and run != found.run_id:
        raise InvalidArgumentError(f"{path} names the run {found.run_id!r}, the command line {run!r}; give one of them")
    if not (run or found.run_id):
        raise InvalidArgumentError(f"{path} has no run_id; write one into it, or give it before --file")
    return run or found.run_id, found.spec


@app.command("watch")
def watch_run(
    run: RunArgument,
    after_step: Annotated[int, typer.Option(help="Show metrics after this step.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Follow a run until it ends: a live table, or one JSON object a line; exit 1 unless it succeeds."""
    last: messages_pb2.Run | None = None
    with connected() as client:
        events = client.runs.watch(run, after_step=after_step)
        if as_json:
            for event in events:
                typer.echo(json.dumps(as_dict_of(event), ensure_ascii=False))
                last = event.run if event.HasField("run") else last
        else:
            board = Board(run)
            with Live(board.render(), console=Console(), refresh_per_second=4) as live:
                for event in events:
                    board.add(event)
                    live.update(board.render())
            last = board.run
    if last is not None and last.state == messages_pb2.RUN_STATE_FAILED:
        raise InternalError(f"{last.name} failed: {last.error_message}; `weft runs resume {short_id(last.name)}`")
    if last is not None and last.state == messages_pb2.RUN_STATE_CANCELLED:
        raise CancelledError(f"{last.name} was cancelled after step {last.step}; start a new run")


def as_dict_of(event: service_pb2.WatchRunResponse) -> dict[str, Any]:
    """The one part of an event that is set."""
    kind = event.WhichOneof("event") or "run"
    return {kind: as_dict(getattr(event, kind))}


@app.command("logs")
def show_logs(
    run: RunArgument,
    attempt: Annotated[int, typer.Option(help="Which start of the ranks; 0 means the last.")] = 0,
    max_bytes: Annotated[int, typer.Option(help="Most bytes of each log; 0 means 64 KiB.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Show the end of what a run's ranks wrote, and what the cluster tells of them."""
    with connected() as client:
        found = client.runs.logs(run, attempt=attempt, max_bytes=max_bytes)
    if as_json:
        print_json(as_dict(found))
        return
    for log in found.logs:
        typer.echo(f"==> attempt {found.attempt}, {log.source} <==")
        typer.echo(log.text.rstrip("\n"))


@app.command("pause")
def pause_run(run: RunArgument, as_json: JsonFlag = False) -> None:
    """Save a checkpoint and stop; `resume` goes on from it."""
    with connected() as client:
        found = client.runs.pause(run)
    print_one(found, run_fields(found), as_json=as_json)


@app.command("resume")
def resume_run(
    run: RunArgument,
    feature_ranks: Annotated[int, typer.Option(min=0, help="Ranks on the feature axis from now on; 0 as before.")] = 0,
    data_ranks: Annotated[int, typer.Option(min=0, help="Groups of ranks from now on; 0 as before.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Go on from the newest complete checkpoint, with other ranks where wanted."""
    with connected() as client:
        found = client.runs.resume(run, feature_ranks=feature_ranks, data_ranks=data_ranks)
    print_one(found, run_fields(found), as_json=as_json)


@app.command("cancel")
def cancel_run(run: RunArgument, as_json: JsonFlag = False) -> None:
    """Stop for good."""
    with connected() as client:
        found = client.runs.cancel(run)
    print_one(found, run_fields(found), as_json=as_json)


@app.command("checkpoints")
def list_checkpoints(run: RunArgument, as_json: JsonFlag = False) -> None:
    """List a run's complete checkpoints, newest first."""
    with connected() as client:
        print_list(
            "checkpoints",
            client.runs.checkpoints(run),
            {
                "name": lambda each: each.name,
                "step": lambda each: str(each.step),
                "size": lambda each: size(each.size_bytes),
                "created": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


@app.command("evaluate")
def evaluate_run(
    run: Annotated[str, typer.Argument(help="Id of the run, or runs/{run}/checkpoints/{step}.")],
    num_tokens: Annotated[int, typer.Option(help="Held-out tokens to use; 0 means all.")] = 0,
    replacement_tokens: Annotated[
        int, typer.Option(help="Held-out tokens to run the replacement model on; 0 leaves it out.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate a checkpoint, the newest by default, on held-out data, layer by layer."""
    with connected() as client:
        operation = client.runs.evaluate(run, num_tokens=num_tokens, replacement_tokens=replacement_tokens)
        result = wait(client, operation, "evaluating", quiet=as_json)
    assert isinstance(result, messages_pb2.Evaluation)
    if as_json:
        print_json(as_dict(result))
    else:
        stdout().print(evaluation_table(result))
