"""`weft labels`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from weft.features.v1 import labels_pb2
from weft_client.cli.output import print_json, print_list, print_one, stdout, time
from weft_client.cli.session import JsonFlag, ValidateOnly, connected
from weft_client.label_files import MAX_FILE_BYTES, format_of, read_labels, write_labels
from weft_common.errors import InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="What people and models say that features stand for.")

TranscoderArgument = Annotated[str, typer.Argument(help="Id of the transcoder.")]
FeatureArgument = Annotated[str, typer.Argument(help="{layer}-{index}, such as 12-345.")]
Etag = Annotated[str, typer.Option(help="Change it only if this is still its etag; 0: only if there is none yet.")]
ModelFlag = Annotated[bool, typer.Option("--model", help="What a model says, not what a person says.")]
FormatOption = Annotated[str, typer.Option("--format", help="csv or jsonl; default: what the file's name ends in.")]


def place(feature: str) -> tuple[int, int]:
    """
    Layer and index of a feature as people type it.

    >>> place("12-345")
    (12, 345)
    """
    layer, _, index = feature.partition("-")
    if not (layer.isascii() and layer.isdecimal() and index.isascii() and index.isdecimal()) or len(feature) > 18:
        raise InvalidArgumentError(f"{feature[:40]!r} is no feature; give {{layer}}-{{index}}, such as 12-345")
    return int(layer), int(index)


def origin(label: labels_pb2.Label) -> str:
    """Who says it, in a word or two."""
    if label.origin == labels_pb2.LABEL_ORIGIN_MODEL:
        return f"model {label.explainer}".rstrip()
    return f"human {label.author}".rstrip()


def _asked(of_model: bool) -> labels_pb2.LabelOrigin.ValueType:
    return labels_pb2.LABEL_ORIGIN_MODEL if of_model else labels_pb2.LABEL_ORIGIN_HUMAN


@app.command("list")
def list_labels(
    transcoder: TranscoderArgument,
    layer: Annotated[int | None, typer.Option(min=0, help="Only features of this layer.")] = None,
    of_model: ModelFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """List the labels that stand, by layer and index."""
    asked = labels_pb2.LABEL_ORIGIN_MODEL if of_model else labels_pb2.LABEL_ORIGIN_UNSPECIFIED
    with connected() as client:
        print_list(
            "labels",
            client.labels.list(transcoder, layer=layer, origin=asked),
            {
                "id": lambda each: f"{each.layer}-{each.index}",
                "label": lambda each: each.text,
                "origin": origin,
                "said": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


@app.command("get")
def get_label(transcoder: TranscoderArgument, feature: FeatureArgument, as_json: JsonFlag = False) -> None:
    """Show the label that stands."""
    layer, index = place(feature)
    with connected() as client:
        _print(client.labels.get(transcoder, layer=layer, index=index), as_json=as_json)


@app.command("set")
def set_label(
    transcoder: TranscoderArgument,
    feature: FeatureArgument,
    text: Annotated[str, typer.Argument(help="One line of plain text, up to 500 characters.")],
    author: Annotated[str, typer.Option(help="Who says it.")] = "",
    etag: Etag = "",
    as_json: JsonFlag = False,
) -> None:
    """Label a feature; a person's label stands before any model's."""
    layer, index = place(feature)
    with connected() as client:
        label = client.labels.set(transcoder, layer=layer, index=index, text=text, author=author, etag=etag)
        _print(label, as_json=as_json)


@app.command("delete")
def delete_label(
    transcoder: TranscoderArgument,
    feature: FeatureArgument,
    of_model: ModelFlag = False,
    etag: Etag = "",
    as_json: JsonFlag = False,
) -> None:
    """Withdraw a label; the history keeps it."""
    layer, index = place(feature)
    with connected() as client:
        client.labels.delete(transcoder, layer=layer, index=index, origin=_asked(of_model), etag=etag)
    if as_json:
        print_json({"transcoder": transcoder, "feature": feature, "deleted": True})
    else:
        stdout().print(f"the label of {feature} is withdrawn")


@app.command("history")
def show_history(transcoder: TranscoderArgument, feature: FeatureArgument, as_json: JsonFlag = False) -> None:
    """List everything that was ever said of a feature, newest first."""
    layer, index = place(feature)
    with connected() as client:
        print_list(
            "revisions",
            client.labels.history(transcoder, layer=layer, index=index),
            {
                "revision": lambda each: str(each.revision),
                "label": lambda each: each.text or "(withdrawn)",
                "origin": origin,
                "said": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


@app.command("export")
def export_labels(
    transcoder: TranscoderArgument,
    file: Annotated[Path | None, typer.Argument(help="File to write; without it, stdout.")] = None,
    file_format: FormatOption = "",
    of_model: ModelFlag = False,
) -> None:
    """Write the labels that stand as CSV or JSON lines."""
    layout = format_of((file_format and f".{file_format}") or (file.name if file else ".jsonl"))
    asked = labels_pb2.LABEL_ORIGIN_MODEL if of_model else labels_pb2.LABEL_ORIGIN_UNSPECIFIED
    with connected() as client:
        lines = write_labels(client.labels.list(transcoder, origin=asked), layout)
        if file is None:
            sys.stdout.writelines(lines)
            return
        # What is there stays until all labels have come.
        fresh = file.with_name(f"{file.name}.new")
        try:
            with fresh.open("w", encoding="utf-8", newline="") as target:
                target.writelines(lines)
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)


@app.command("import")
def import_labels(
    transcoder: TranscoderArgument,
    file: Annotated[Path, typer.Argument(help="CSV or JSON lines, as `weft labels export` writes them.")],
    file_format: FormatOption = "",
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Add the labels of a file; those that are there already are left as they are."""
    layout = format_of((file_format and f".{file_format}") or file.name)
    labels = list(_read(file, layout))
    with connected() as client:
        if labels:
            # Everything before anything: a wrong row at the end shall not leave half a file behind.
            client.labels.add(transcoder, labels, validate_only=True)
        done = labels_pb2.ImportLabelsResponse() if validate_only else client.labels.add(transcoder, labels)
    if as_json:
        print_json({"labels": len(labels), "added": done.num_added, "unchanged": done.num_unchanged})
    elif validate_only:
        stdout().print(f"{len(labels)} labels would be accepted; nothing was changed")
    else:
        stdout().print(f"{done.num_added} labels added, {done.num_unchanged} were there already")


def _read(file: Path, layout: str) -> Iterator[labels_pb2.Label]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise InvalidArgumentError(f"{file} has more than {MAX_FILE_BYTES} bytes; give smaller files", field="file")
        # Spreadsheets begin their files with a mark of the byte order.
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from read_labels(lines, layout, str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{file} cannot be read ({error}); give a UTF-8 file", field="file") from error


def _print(label: labels_pb2.Label, *, as_json: bool) -> None:
    fields = [
        ("feature", f"{label.layer}-{label.index}"),
        ("label", label.text),
        ("origin", origin(label)),
        ("revision", f"{label.revision}, etag {label.etag}"),
        ("said", time(label.create_time)),
    ]
    print_one(label, fields, as_json=as_json)
