"""`weft datasets export`: activations as files that others read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from weft_client.cli.datasets import DatasetArgument
from weft_client.cli.output import print_json, stdout
from weft_client.cli.session import JsonFlag, connected
from weft_client.exporting import export_dataset


class FormatOption(StrEnum):
    """Formats that activations are written in."""

    SAFETENSORS = "safetensors"
    PARQUET = "parquet"
    ZARR = "zarr"


def export(
    dataset: DatasetArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write to: empty, or with the same export cut short.")],
    file_format: Annotated[FormatOption, typer.Option("--format", help="What to write.")] = FormatOption.SAFETENSORS,
    snapshot: Annotated[int, typer.Option(min=0, help="One of its snapshots; 0 means the sealed dataset.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write activations as float32 files; the same command goes on where it was cut short."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with (
        connected() as client,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=as_json) as bars,
    ):
        bar = bars.add_task(dataset, total=None)
        tokens = export_dataset(
            client,
            dataset,
            folder,
            file_format.value,
            snapshot=snapshot,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    if as_json:
        print_json({"dataset": dataset, "folder": str(folder), "format": file_format.value, "tokens": tokens})
    else:
        stdout().print(f"{tokens:,} tokens of {dataset} lie in {folder} as {file_format.value}", soft_wrap=True)
