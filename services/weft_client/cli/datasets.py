"""`weft datasets`."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from weft.cache.v1 import messages_pb2, retention_pb2
from weft_client.cli import harvests
from weft_client.cli.output import as_dict, print_json, print_list, print_one, size, state, stdout, time
from weft_client.cli.session import JsonFlag, NoWait, connected
from weft_client.names import short_id

app = typer.Typer(no_args_is_help=True, help="Compressed activations in the bucket.")
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
DatasetArgument = Annotated[str, typer.Argument(help="Id of the dataset.")]


def _state(dataset: messages_pb2.Dataset) -> str:
    return state(messages_pb2.DatasetState.Name(dataset.state))


def _tags(given: list[str] | None, param_hint: str) -> dict[str, str]:
    """Read `key=value`, as often as it was given."""
    tags = {}
    for each in given or ():
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{each!r} is no tag; write KEY=VALUE", param_hint=param_hint)
        tags[key] = value
    return tags


def _tags_text(dataset: messages_pb2.Dataset) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(dataset.tags.items()))


class StateOption(StrEnum):
    """States that datasets can be looked for by."""

    OPEN = "open"
    SEALED = "sealed"


@app.command("list")
def list_datasets(
    state: Annotated[StateOption | None, typer.Option(help="Only these.")] = None,
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    codec: Annotated[str, typer.Option(help="Only of this codec.")] = "",
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only with this tag; repeat it.")] = None,
    since: Annotated[datetime | None, typer.Option(formats=_TIMES, help="Only created then or later, UTC.")] = None,
    before: Annotated[datetime | None, typer.Option(formats=_TIMES, help="Only created earlier, UTC.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List datasets, newest first."""
    state_number = messages_pb2.DatasetState.Value(f"DATASET_STATE_{state.name if state else 'UNSPECIFIED'}")
    with connected() as client:
        found = client.datasets.list(
            state=state_number,
            model=model,
            codec=codec,
            tags=_tags(tag, "--tag"),
            created_from=since and since.replace(tzinfo=UTC),
            created_before=before and before.replace(tzinfo=UTC),
        )
        print_list(
            "datasets",
            found,
            {
                "id": lambda each: short_id(each.name),
                "state": _state,
                "model": lambda each: short_id(each.spec.model),
                "train tokens": lambda each: f"{each.num_train_tokens:,}",
                "held out": lambda each: f"{each.num_held_out_tokens:,}",
                "size": lambda each: size(each.size_bytes),
                "created": lambda each: time(each.create_time),
                "tags": _tags_text,
            },
            as_json=as_json,
        )


@app.command("tag")
def tag_dataset(
    dataset: DatasetArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Tags to set.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Tag to take away; repeat it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Set tags of a dataset or take them away; those that are not named stay."""
    with connected() as client:
        found = client.datasets.tag(dataset, _tags(tags, "KEY=VALUE"), remove=remove or ())
    print_one(found, fields(found), as_json=as_json)


def _kept(rules: retention_pb2.Retention) -> str:
    days = [f"{rules.keep_days} days"] if rules.keep_days else []
    last = [f"while it is of the last {rules.keep_last} by {rules.keep_last_tag}"] if rules.keep_last else []
    return " or ".join(days + last)


def fields(found: messages_pb2.Dataset) -> list[tuple[str, str]]:
    """What is printed of a dataset."""
    spec = found.spec
    return [
        ("name", found.name),
        *([("snapshot", str(found.snapshot))] if found.snapshot else []),
        ("state", _state(found)),
        ("model", f"{spec.model}, revision {spec.model_revision}"),
        ("streams", f"{spec.input_hook} and {spec.output_hook}, {spec.num_layers} layers of {spec.d_model}"),
        ("codec", spec.codec + (f", wanted FVU {spec.target_fvu:g}" if spec.codec != "bf16" else "")),
        ("corpus", spec.corpus),
        ("made with", _versions(spec.lineage)),
        ("tokens", f"{found.num_train_tokens:,} to train on, {found.num_held_out_tokens:,} held out"),
        ("shards", f"{len(found.shards)}, {size(found.size_bytes)}"),
        *([("tags", _tags_text(found))] if found.tags else []),
        *([("kept", _kept(found.retention))] if found.HasField("retention") else []),
        ("created", time(found.create_time)),
        ("sealed", time(found.seal_time)),
    ]


def _versions(lineage: str) -> str:
    """Shorten what the dataset was made with to names and versions; `--json` has all of it."""
    try:
        found = json.loads(lineage)["versions"]
        return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    except (ValueError, TypeError, KeyError, AttributeError):
        return lineage[:200]


@app.command("get")
def get_dataset(
    dataset: DatasetArgument,
    snapshot: Annotated[int, typer.Option(min=0, help="One of its snapshots; 0 means the dataset itself.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Describe one dataset and its compression, or one of its snapshots."""
    with connected() as client:
        found = client.datasets.get(dataset, snapshot=snapshot)
        stats = None if snapshot else client.datasets.stats(dataset)
    if stats is None:
        print_one(found, fields(found), as_json=as_json)
    elif as_json:
        print_json({**as_dict(found), "stats": as_dict(stats)})
    else:
        compression = f"{stats.bits_per_value:.2f} bits a value, largest FVU {stats.fvu_max:.2e}"
        print_one(found, [*fields(found), ("compression", compression)], as_json=False)


@app.command("snapshot")
def snapshot_dataset(dataset: DatasetArgument, as_json: JsonFlag = False) -> None:
    """Number what a harvest has committed by now, to train on; a sealed dataset is described as it is."""
    with connected() as client:
        found = client.datasets.snapshot(dataset)
    print_one(found, fields(found), as_json=as_json)


@app.command("create")
def create_dataset(
    dataset: Annotated[str, typer.Argument(help="Id of the new dataset; its harvest gets the same.")],
    model: harvests.ModelOption,
    corpus: harvests.CorpusOption = None,
    text: harvests.TextOption = None,
    num_tokens: harvests.NumTokensOption = 40_000,
    held_out_share: harvests.HeldOutOption = 0.1,
    codec: harvests.CodecOption = "uniform",
    target_fvu: harvests.TargetFvuOption = 1e-3,
    no_wait: NoWait = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a dataset: the same as `weft harvests create`, with one name for both."""
    harvests.create(
        dataset,
        dataset=dataset,
        model=model,
        corpus=corpus,
        text=[Path(each) for each in text or ()],
        num_tokens=num_tokens,
        held_out_share=held_out_share,
        codec=codec,
        target_fvu=target_fvu,
        no_wait=no_wait,
        validate_only=False,
        as_json=as_json,
    )


@app.command("delete")
def delete_dataset(dataset: DatasetArgument, as_json: JsonFlag = False) -> None:
    """Delete a dataset and its shards, unless somebody holds it."""
    with connected() as client:
        client.datasets.delete(dataset)
    if as_json:
        print_json({"deleted": dataset})
    else:
        stdout().print(f"{dataset} is deleted")
