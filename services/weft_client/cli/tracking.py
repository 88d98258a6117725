"""`weft runs log`: a run's metrics for TensorBoard and W&B."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from weft_client.cli.output import as_dict, print_json
from weft_client.cli.session import JsonFlag, connected
from weft_client.names import short_id
from weft_client.tracking.following import Tracker, track
from weft_client.tracking.tensorboard_files import TensorBoardFiles
from weft_client.tracking.wandb_run import WandbRun
from weft_common.errors import InvalidArgumentError

__all__ = ["log_run"]


def log_run(
    run: Annotated[str, typer.Argument(help="Id of the run.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's event files; the run gets one of its own in it.")
    ] = None,
    wandb: Annotated[str, typer.Option(help="W&B project; WANDB_MODE=offline writes files alone.")] = "",
    after_step: Annotated[int, typer.Option(help="Leave out what came up to this step.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's metrics and evaluations for TensorBoard or W&B, until the run ends; Ctrl-C leaves it running."""
    if tensorboard is None and not wandb:
        raise InvalidArgumentError("give --tensorboard DIR, --wandb PROJECT, or both")
    with connected() as client:
        found = client.runs.get(run)
        trackers: list[Tracker] = []
        try:
            if tensorboard is not None:
                trackers.append(TensorBoardFiles(tensorboard / short_id(found.name)))
            if wandb:
                trackers.append(WandbRun(wandb, short_id(found.name), as_dict(found.spec)))
            kept = track(client.runs.watch(run, after_step=after_step), trackers)
        finally:
            for tracker in trackers:
                tracker.close()
    if as_json:
        print_json({"run": found.name, "events": kept})
    else:
        Console(stderr=True).print(f"{short_id(found.name)}: {kept} steps and evaluations written", highlight=False)
