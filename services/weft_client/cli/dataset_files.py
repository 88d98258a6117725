"""`weft datasets export` and `import`: activations as files that others read, and files that others wrote."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from weft_client.cli.datasets import DatasetArgument, fields
from weft_client.cli.output import print_json, print_one, stdout
from weft_client.cli.session import JsonFlag, connected
from weft_client.exporting import export_dataset
from weft_client.names import full_name
from weft_common.errors import FailedPreconditionError


class FormatOption(StrEnum):
    """Formats that activations are written in."""

    SAFETENSORS = "safetensors"
    PARQUET = "parquet"
    ZARR = "zarr"


def _bars(as_json: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=as_json)


def export(
    dataset: DatasetArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write to: empty, or with the same export cut short.")],
    file_format: Annotated[FormatOption, typer.Option("--format", help="What to write.")] = FormatOption.SAFETENSORS,
    snapshot: Annotated[int, typer.Option(min=0, help="One of its snapshots; 0 means the sealed dataset.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write activations as float32 files; the same command goes on where it was cut short."""
    with connected() as client, _bars(as_json) as bars:
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


def import_files(
    dataset: Annotated[str, typer.Argument(help="Id of the new dataset.")],
    folder: Annotated[Path, typer.Argument(help="Folder of an export in safetensors, or of a cache of CLT-Forge.")],
    model: Annotated[str, typer.Option(help="Id of the model that the activations are of.")],
    model_revision: Annotated[str, typer.Option(help="Its revision; asked of the activations service if empty.")] = "",
    input_hook: Annotated[str, typer.Option(help="Where inputs were taken.")] = "mlp_in",
    output_hook: Annotated[str, typer.Option(help="Where outputs were taken.")] = "mlp_out",
    codec: Annotated[str, typer.Option(help="uniform or bf16.")] = "uniform",
    target_fvu: Annotated[float, typer.Option(help="Wanted FVU of the uniform codec.")] = 1e-3,
    held_out_share: Annotated[float, typer.Option(help="Share of shards kept from training.")] = 0.1,
    as_json: JsonFlag = False,
) -> None:
    """Make a dataset of files that others wrote; the same command goes on where it was cut short."""
    try:
        from weft_client.importing import import_dataset
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"an import encodes shards with the package {error.name}, which is not installed: pip install "
            "'weft[import]'"
        ) from error
    with connected() as client, _bars(as_json) as bars:
        bar = bars.add_task(dataset, total=None)
        found = import_dataset(
            client,
            dataset,
            folder,
            model=full_name("models", model),
            model_revision=model_revision or client.models.get(model).revision,
            input_hook=input_hook,
            output_hook=output_hook,
            codec=codec,
            target_fvu=target_fvu,
            held_out_share=held_out_share,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    print_one(found, fields(found), as_json=as_json)
